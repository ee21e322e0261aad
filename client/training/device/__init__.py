"""What the machine does for training: half precision, compiled passes, batches on their way, freed memory kept.

No methods, and nothing of studies.
"""
