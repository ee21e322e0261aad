"""ComBat for a table's columns: from sites' sums to what is common, each site's own effects, and the layer with both.
Nothing here reads data or sends anything.
"""
