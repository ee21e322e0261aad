"""Metrics as sums that can be added over sites, a file for each kind of task.
Intervals, support and names are one room up.
"""
