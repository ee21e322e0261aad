"""What cannot go together in a study, subject by subject.
Who asks all of them is one room up.
"""
