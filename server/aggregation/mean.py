"""The weighted mean of updates, taken in one at a time in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedgraft.common.protocol.instructions import TRUNK, Arrays, Update
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.stages.aggregates import Mean


class MeanAggregator:
    """Weighted mean per entry; a head is weighted by its own task's labels, so that sites without do not dilute it."""

    def __init__(self, aggregate: Mean, tags: Tags) -> None:
        self._equal = aggregate.weight == "equal"
        self._tags = tags
        self._sums: dict[str, np.ndarray] = {}
        self._weights: dict[str, float] = {}

    def add(self, update: Update) -> None:
        """Add a site's entries times its weight, in float64."""
        for key, array in update.tensors.items():
            weight = update.weights[self._tags[key].task or TRUNK]
            if self._equal:
                weight = float(weight > 0)
            if weight == 0:
                continue
            if key not in self._sums:
                self._sums[key] = np.zeros(array.shape)
            self._weights[key] = self._weights.get(key, 0.0) + weight
            _add_scaled(self._sums[key], array, weight)

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """The means; whole numbers stay whole."""
        aggregated = {}
        for key, mean in self.means():
            dtype = state[key].dtype
            aggregated[key] = np.rint(mean).astype(dtype) if dtype.kind in "iu" else mean.astype(dtype)
        return aggregated

    def means(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each entry's mean in float64; none where no site had a weight."""
        for key, total in self._sums.items():
            yield key, total / self._weights[key]


_CHUNK = 1 << 16


def _add_scaled(total: np.ndarray, array: np.ndarray, weight: float) -> None:
    """`total += weight * array` in float64, in pieces that stay in the processor's cache."""
    into, flat = total.reshape(-1), array.reshape(-1)
    if len(flat) <= _CHUNK:
        into += np.multiply(flat, weight, dtype=np.float64)
        return
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        part *= weight
        into[start : start + _CHUNK] += part
