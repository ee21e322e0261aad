"""Whether a study can work and what it will do, before anything runs: faults, explanations.
Nothing here needs a site or its data.
"""
