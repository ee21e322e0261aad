"""Attacks on what leaves a site: on single stages, with the code that sites run.
What a study promises as a whole is tried beside this room.
"""
