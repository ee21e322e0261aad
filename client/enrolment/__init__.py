"""How a hospital joins: configuration, home folder, keys, pseudonyms.
Nothing here runs a study.
"""
