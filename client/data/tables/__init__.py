"""Rows and words of tables: CSV files as they come, what a cell means, labels as targets, ids of patients.
No images, no splits.
"""
