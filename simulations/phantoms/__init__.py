"""Hospitals that are made up: scenarios, patients, scanners, DICOM files.
No images of real patients.
"""
