"""A run as the documents that regulators and data-protection officers read: what it shows, and what is missing.
Nothing is computed anew here; figures are those of the report.
"""
