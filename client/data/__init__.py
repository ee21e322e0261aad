"""From a hospital's files to cases and targets.
Nothing here trains or sends.
"""
