"""What a site does with a table's columns before a model learns from them.
Sums that leave, and what it fits to itself; the arithmetic is in `fedgraft.common.harmonisation`.
"""
