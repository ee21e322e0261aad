"""What a site states about a run, in a form that others can check: signed parts in a chain, and their words.
Nothing here reads a site's data or a run.
"""
