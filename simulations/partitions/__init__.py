"""One cohort as several hospitals: by a column, or dealt out by size, Dirichlet or shards.
Nothing is decoded here, and nothing trains.
"""
