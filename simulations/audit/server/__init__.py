"""Promises of the server, tried with its own parts: replies that lie, names of others, a crowd at the door.
What the server may ask of a site is tried in `lying` and `home`.
"""
