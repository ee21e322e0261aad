"""Single files to pixels: DICOM values, look-up tables, ordinary images, and why a file cannot be used.
Nothing here knows labels or patients.
"""
