"""Code of others that fedgraft calls by name: where it is from, which version and content it has, how it is loaded.
Nothing here knows what a backbone or a loss is; nothing is loaded before its place was asked for.
"""
