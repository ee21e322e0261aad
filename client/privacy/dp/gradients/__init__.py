"""The gradient of each unit alone, clipped and summed: which layers know it, and how it is had in one pass.
No noise and no choice of who comes into a step: these are one room up.
"""
