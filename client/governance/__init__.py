"""What persons at the hospital decide and can look up: approvals, budget, egress log, reviews.
No training, no network.
"""
