"""Metrics as sums that can be added over sites, and the figures made of them.
Nothing that shows or releases them.
"""
