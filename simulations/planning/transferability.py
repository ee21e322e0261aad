"""How much of a task lies ready in frozen features, from sums over cases alone, before anything is trained.

The sums are those of a closed-form head: `gram` = sum z z' (d+1, d+1) and `cross` = sum z y' (d+1, C), where
z = [features; 1] and y is one-hot, 1 or -1 for a label, or a value in deviations. They add up over sites, so what comes
out is that of the pooled cases.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg

_TINY = 1e-10
_STEPS = 100
_SHRINK = 0.1


def log_me(gram: np.ndarray, cross: np.ndarray, squares: np.ndarray) -> float:
    """LogME: the mean over outputs of the largest log evidence per case of a Bayesian linear model (You et al. 2021).

    Labels are y = w'f + noise with w ~ N(0, 1/alpha) and noise ~ N(0, 1/beta); alpha and beta are those of most
    evidence, by fixed-point steps. `squares` (C,) are sums of y * y. Comparable between feature sets on the same cases
    and labels; higher is better.
    """
    dim, n = len(gram) - 1, float(gram[-1, -1])
    values, vectors = linalg.eigh(gram[:dim, :dim])
    values = np.maximum(values, 0.0)
    real = values > _TINY * max(float(values.max()), _TINY)
    along = vectors.T @ cross[:dim]
    evidence = []
    for column in range(cross.shape[1]):
        projected = along[real, column] ** 2 / values[real]
        evidence.append(_evidence(values[real], projected, max(float(squares[column]) - projected.sum(), 0.0), n, dim))
    return float(np.mean(evidence))


def h_score(gram: np.ndarray, cross: np.ndarray) -> float:
    """H-score: how far apart class means lie, in units of the features' covariance (Bao et al. 2019).

    The trace of cov(f)^-1 cov(E[f | y]), a tenth of the covariance being replaced by its mean variance on the diagonal,
    as few cases need it (Ibrahim et al. 2022). Between 0 and the number of classes less one.
    """
    dim, n = len(gram) - 1, float(gram[-1, -1])
    mean = gram[:dim, -1] / n
    covariance = gram[:dim, :dim] / n - np.outer(mean, mean)
    variance = float(np.trace(covariance)) / dim
    covariance = (1 - _SHRINK) * covariance + (_SHRINK * variance + _TINY) * np.eye(dim)
    counts = cross[-1]
    apart = (cross[:-1] / np.maximum(counts, 1.0)).T - mean
    between = (apart.T * counts / n) @ apart
    return float(np.trace(linalg.solve(covariance, between, assume_a="pos")))


def _evidence(values: np.ndarray, projected: np.ndarray, outside: float, n: float, dim: int) -> float:
    """The largest log evidence per case; `projected` is how much of y'y lies along each direction, `outside` none."""
    alpha, beta = 1.0, 1.0
    for _ in range(_STEPS):
        ratio = alpha / beta
        used = float((values / (values + ratio)).sum())
        length = float((values * projected / (values + ratio) ** 2).sum())
        left = float((projected * (ratio / (values + ratio)) ** 2).sum()) + outside
        alpha, beta = used / max(length, _TINY), (n - used) / max(left, _TINY)
        if abs(alpha / beta - ratio) <= 1e-6 * ratio:
            break
    ratio = alpha / beta
    length = float((values * projected / (values + ratio) ** 2).sum())
    left = float((projected * (ratio / (values + ratio)) ** 2).sum()) + outside
    determinant = float(np.log(alpha + beta * values).sum()) + (dim - len(values)) * np.log(alpha)
    evidence = n / 2 * np.log(beta) + dim / 2 * np.log(alpha) - n / 2 * np.log(2 * np.pi) - determinant / 2
    return float((evidence - beta / 2 * left - alpha / 2 * length) / n)
