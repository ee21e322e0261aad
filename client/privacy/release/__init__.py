"""Metrics as a site's policy lets them out: exact, noised, suppressed or not at all.
How metrics are computed is in `fedgraft.common.metrics`.
"""
