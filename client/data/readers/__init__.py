"""One reader for each kind of data: a file in, its cases out, with what the file says of them.
No joins, no splits, no cache: those are the same for all kinds, and lie in `cohorts`.
"""
