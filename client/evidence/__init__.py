"""What a hospital can show of a run it took part in: an audit by its own attacks, and a signed passport.
Reads the site's records and data, and changes neither.
"""
