"""Masked uploads for secure aggregation, and the record that no mask is used twice.
The masks themselves are in `fedgraft.common.secure_aggregation`.
"""
