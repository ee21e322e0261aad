"""What privacy has been spent, and what was answered: records that are written before anything leaves.
Nothing here computes on patients.
"""
