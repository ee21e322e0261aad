"""The commands that simulate, compare, plan and audit.
Thin: what they do is in the other rooms.
"""
