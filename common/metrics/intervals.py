"""How far a figure may be off by the cases that happened to be there: 95 % intervals of what is made of sums.

They are about other patients of the same kind at the same sites, and say nothing of another training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fedgraft.common.metrics.sums.score_histogram import Floats, auroc

Interval = tuple[float, float]
Z = 1.959963984540054
"""Of the normal distribution, for 95 %."""


def wilson(part: float, whole: float) -> Interval | None:
    """Of a proportion (Wilson 1927): `part` of `whole` cases; None of no cases.

    Also of a mean of values in 0..1, whose deviation is never above that of a proportion: it is then too wide, not
    too narrow.
    """
    if whole <= 0 or not 0 <= part <= whole:
        return None
    share, square = part / whole, Z * Z
    centre = (share + square / (2 * whole)) / (1 + square / whole)
    reach = Z / (1 + square / whole) * math.sqrt(share * (1 - share) / whole + square / (4 * whole * whole))
    # Rounding must not leave the share itself outside: at 0 and at 1 an end is the share.
    return max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach))


def mean_of_proportions(parts: Sequence[float], wholes: Sequence[float], *, apart: bool) -> Interval | None:
    """Of the mean of proportions, those of no cases left out: from Wilson's of each (MOVER; Zou and Donner 2008).

    `apart`: each is of cases of its own. Of shared cases nothing is known of how they go together, and the widths are
    averaged as if they always did.
    """
    known = [(part / whole, wilson(part, whole)) for part, whole in zip(parts, wholes, strict=True) if whole > 0]
    below = [share - found[0] for share, found in known if found is not None]
    above = [found[1] - share for share, found in known if found is not None]
    if not below or len(below) < len(known):
        return None
    mean = sum(share for share, _ in known) / len(known)
    add = (lambda reach: math.sqrt(sum(r * r for r in reach))) if apart else math.fsum
    return max(0.0, mean - add(below) / len(known)), min(1.0, mean + add(above) / len(known))


def delong(positive: Floats, negative: Floats) -> float | None:
    """The variance of an AUROC (DeLong et al. 1988), from positives and negatives by score, highest first, ties in one.

    None with fewer than two of either.
    """
    m, n = float(positive.sum()), float(negative.sum())
    value = auroc(positive, negative)
    if value is None or m < 2 or n < 2:
        return None
    of_positives = (n - np.cumsum(negative) + negative / 2) / n
    of_negatives = (np.cumsum(positive) - positive / 2) / m
    spread = positive @ (of_positives - value) ** 2 / (m - 1), negative @ (of_negatives - value) ** 2 / (n - 1)
    return float(spread[0] / m + spread[1] / n)


def auroc_interval(rows: Sequence[tuple[Floats, Floats]]) -> Interval | None:
    """Of the mean AUROC over rows (a class against the rest, or a label), those that are undefined left out.

    One row: DeLong's, or where all cases are in order, and its variance 0, Newcombe's. Of several the deviations are
    averaged as if they always went together, which is never too narrow.
    """
    values, reaches = [], []
    for positive, negative in rows:
        value = auroc(positive, negative)
        if value is None:
            continue
        variance = delong(positive, negative)
        low, high = newcombe(value, float(positive.sum()), float(negative.sum()))
        reach = (value - low, high - value) if not variance else (Z * math.sqrt(variance),) * 2
        values.append(value)
        reaches.append(reach)
    if not values:
        return None
    mean, (below, above) = sum(values) / len(values), np.mean(reaches, axis=0)
    return max(0.0, float(mean - below)), min(1.0, float(mean + above))


def newcombe(value: float, positives: float, negatives: float) -> Interval:
    """Of an AUROC by Hanley and McNeil's variance at each end instead of at the value (Newcombe 2006, method 5).

    It is an interval where that variance is 0 at the value itself: at 1 and at 0.
    """
    half = (positives + negatives) / 2 - 1

    def off(theta: float) -> float:
        shape = 1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (value - theta) ** 2 - Z * Z * theta * (1 - theta) * shape / (positives * negatives)

    return _edge(off, 0.0, value), _edge(off, 1.0, value)


def mean_interval(total: float, squares: float, count: float) -> Interval | None:
    """Of a mean of values, from their sum and that of their squares, by the normal distribution; None of one value."""
    if count < 2 or math.isnan(squares) or math.isnan(total):
        return None
    mean = total / count
    reach = Z * math.sqrt(max(0.0, squares / count - mean * mean) / (count - 1))
    return mean - reach, mean + reach


def deviation(interval: Interval) -> float:
    """The standard error that an interval stands for."""
    return (interval[1] - interval[0]) / (2 * Z)


def _edge(off: Callable[[float], float], end: float, value: float) -> float:
    """Where a function that is positive at `end`, and not at `value`, becomes 0, to 1e-9; `end` if it is not so."""
    outside, inside = end, value
    if off(outside) <= 0:
        return outside
    for _ in range(40):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if off(middle) > 0 else (outside, middle)
    return (outside + inside) / 2
