"""Files that people write: strict YAML, faults in words, old names and the new ones, what was meant.
What a key means is said where its value is.
"""
