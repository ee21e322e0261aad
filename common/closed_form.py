"""Solutions from sums: what pooled data would give, computed from the sites' sums alone."""

from __future__ import annotations

import numpy as np
from scipy import linalg

_TINY = 1e-12


def ridge_head(gram: np.ndarray, cross: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of one-hot labels on standardised features with a free intercept, from sums.

    `gram` = sum z z' (d+1, d+1) and `cross` = sum z y' (d+1, C) with z = [features; 1]; `strength` is the penalty per
    case. With mu and s the pooled mean and deviation of the features and G their centred second moments, it solves
    (G / ss' + n strength I) V = (B_d - mu b') / s. Returns weight (C, d) and bias (C,) for raw features. Equals the
    solution on the pooled cases up to rounding. Features without spread get weight 0.
    """
    n, dim = gram[-1, -1], len(gram) - 1
    mean = gram[:dim, -1] / n
    centred = gram[:dim, :dim] - n * np.outer(mean, mean)
    variance = np.diag(centred) / n
    spread = variance > _TINY * np.maximum(1.0, np.diag(gram)[:dim] / n)
    scale = np.where(spread, np.sqrt(np.where(spread, variance, 1.0)), np.inf)
    left = centred / np.outer(scale, scale) + n * strength * np.eye(dim)
    right = (cross[:dim] - np.outer(mean, cross[-1])) / scale[:, None]
    weight = linalg.solve(left, right, assume_a="pos") / scale[:, None]
    bias = cross[-1] / n - mean @ weight
    return weight.T, bias


def standard_scale(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per column from sums; a column without values or spread gets mean as is and deviation 1."""
    known = np.maximum(count, 1)
    mean = total / known
    variance = np.maximum(squares / known - mean**2, 0.0)
    flat = variance <= _TINY * np.maximum(1.0, mean**2)
    return mean, np.where(flat, 1.0, np.sqrt(np.where(flat, 1.0, variance)))
