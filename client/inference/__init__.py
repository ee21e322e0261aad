"""A finished model on a hospital's own images: predictions, heat maps, adaptation to a few cases.
Nothing here leaves the site.
"""
