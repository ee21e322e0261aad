"""What a model says, as DICOM objects beside the images that it is about: segmentations, reports, captures.

It takes the extra `medical` (highdicom), which is imported only where an object is made.
"""
