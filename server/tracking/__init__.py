"""Trackers of experiments: where a run's rounds and results go besides its own folder.
They read what the run has written, and nothing of theirs can change or end it.
"""
