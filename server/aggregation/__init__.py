"""From sites' updates to the next state: one file per family of rules.
No network and no files.
"""
