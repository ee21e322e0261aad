"""The one door: policy and ledger asked before work, the stricter of site and study taken.
No noise and no training here.
"""
