"""What protects a site's patients: policy, noise, ledger, masks, released metrics.
Every decision about what may leave is made here.
"""
