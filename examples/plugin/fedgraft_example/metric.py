"""A metric of one's own, made of sums, so that what sites add up is the figure of all their cases together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Matthews:
    """Matthews' correlation coefficient of the likeliest class and the true one, also of more than two classes.

    Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient". A case adds 1 to one
    cell of the confusion matrix.
    """

    tasks = ("multiclass",)
    better = "higher"
    low, high = -1.0, 1.0
    adds = (0.0, 1.0)

    def cases(self, outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """(n, classes^2) of logits (n, classes) and classes (n,)."""
        classes = outputs.shape[1]
        cells = np.zeros((len(targets), classes * classes))
        cells[np.arange(len(targets)), targets * classes + outputs.argmax(axis=1)] = 1
        return cells

    def value(self, sums: NDArray[np.float64]) -> float | None:
        """The coefficient; None where all cases are, or are taken for, of one class."""
        confusion = sums.reshape(math.isqrt(len(sums)), -1)
        n, hit = confusion.sum(), np.trace(confusion)
        true, said = confusion.sum(axis=1), confusion.sum(axis=0)
        spread = (n**2 - said @ said) * (n**2 - true @ true)
        return float((hit * n - true @ said) / math.sqrt(spread)) if spread > 0 else None
