"""What may be wrong with a study, one kind of fault per file; each says all that it finds.
What puts them together, and what a study will do in words, are one room up.
"""
