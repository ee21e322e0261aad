"""From an archive (PACS) to a folder of DICOM files: search, retrieval, a record of what is there.
No pixel is looked at, and nothing goes back to the archive.
"""
