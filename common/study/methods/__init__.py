"""Methods by their usual names, as values of a plan: presets, the recipes they are made of, ensembles.
No code that trains or aggregates.
"""
