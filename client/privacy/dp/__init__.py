"""Differentially private work: per-patient gradients, clipping, noise from the site's own secret.
No budget is charged here: that is the ledger's.
"""
