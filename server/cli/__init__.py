"""The commands of `fedgraft server`.
Thin: what they do is in the other rooms.
"""
