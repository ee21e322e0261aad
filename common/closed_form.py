"""Solutions from sums: what pooled data would give, computed from the sites' sums alone."""

from __future__ import annotations

import numpy as np
from scipy import linalg

from common.errors import RunError
from common.orders import Arrays
from common.plan import Ridge

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


def heads_from_sums(sums: Arrays, merge: Ridge, state: Arrays) -> dict[str, np.ndarray]:
    """Entries of the heads that solve the problem of the sums `TASK/gram` and `TASK/cross`, typed as in `state`.

    RunError if there is not a single label.
    """
    heads = {}
    for task in sorted({key.partition("/")[0] for key in sums}):
        gram, cross = sums[f"{task}/gram"], sums[f"{task}/cross"]
        if gram[-1, -1] == 0:
            raise RunError(f"No site has a label for task {task!r}.", fix="Check the sites' label columns.")
        weight, bias = ridge_head(gram, cross, merge.strength)
        for name, value in (("weight", weight), ("bias", bias)):
            key = f"heads.{task}.{name}"
            heads[key] = (value * merge.scale).astype(state[key].dtype)
    return heads


def scale_from_sums(sums: Arrays, state: Arrays) -> dict[str, np.ndarray]:
    """Entries of the standardising layer from the sums `count`, `sum` and `squares` of columns, typed as in `state`."""
    mean, std = standard_scale(sums["count"], sums["sum"], sums["squares"])
    values: Arrays = {"mean": mean, "std": std}
    keys = {name: next(key for key in state if key.endswith(f".{name}")) for name in values}
    return {key: values[name].astype(state[key].dtype) for name, key in keys.items()}
