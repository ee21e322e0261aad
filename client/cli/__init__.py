"""The commands of `fedgraft site`.
Thin: what they do is in the other rooms.
"""
