"""A study and its alternatives on the same splits and seeds, and what the difference is worth.
Each run is an ordinary simulation.
"""
