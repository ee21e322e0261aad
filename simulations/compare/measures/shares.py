"""What metrics under weights are made of: shares that may be undefined, and means over those that are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedgraft.simulations.compare.measures.answers import Answers

Floats = NDArray[np.float64]
Ranked = Callable[[NDArray[np.int64], NDArray[np.bool_], Floats], Floats]
"""From scores' bins (N,), which cases are positive (N,), and rows of weights (rows, N) to a figure for each row."""
Metrics = Mapping[str, Callable[[Answers, Floats], Floats]]
"""By name what gives a metric for each row of case weights (rows, N), (rows,); NaN where it is undefined."""


def ratio(part: Floats, whole: Floats) -> Floats:
    """`part` of `whole`, number by number; NaN of nothing."""
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def mean_known(table: Floats) -> Floats:
    """The mean over the first axis of what is a number; NaN where none is."""
    known = ~np.isnan(table)
    return ratio(np.where(known, table, 0.0).sum(axis=0), known.sum(axis=0).astype(np.float64))
