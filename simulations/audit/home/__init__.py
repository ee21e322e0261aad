"""Promises that a site keeps at home, tried at made-up hospitals with the program that real ones run.
What a coordinator says is tried in `lying`.
"""
