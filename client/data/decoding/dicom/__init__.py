"""DICOM: right values, shown as a screen shows them, and nothing about the patient but a key.
Other files, and the processes that decode, are one room up.
"""
