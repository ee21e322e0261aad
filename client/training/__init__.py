"""A stage's work at the site: gradient steps, statistics, recalibration.
Nothing here decides what leaves the site.
"""
