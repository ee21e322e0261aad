"""Attacks on a study's claims of privacy.
They run the real code, and nothing of theirs is used elsewhere.
"""
