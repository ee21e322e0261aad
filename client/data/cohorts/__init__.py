"""Files, labels and patients to a cohort with splits; its cache.
No decoding of pixels, no training.
"""
