"""A running server: gate, SuperLink, starting and watching over runs.
Nothing here looks into updates.
"""
