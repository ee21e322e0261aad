"""A running site: from a message to an answer.
What is done for an answer is in the rooms below.
"""
