"""What a method is, and the one rule by which what it remembers is carried, sent and added up.
No single method lives here.
"""
