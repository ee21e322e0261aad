"""Losses that learn without a site's own labels: from a source, from guesses, from a teacher.
What every loss has, and how they are weighed, is one room up.
"""
