"""Aggregations that hold when a few sites send nonsense on purpose. All sites count the same: weights could be claimed.

They need the updates of all sites at once, so memory grows with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import RunError
from fedgraft.common.protocol.instructions import TRUNK, Arrays, Update
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.stages.aggregates import (
    Krum,
    Median,
    TrimmedMean,
)
from fedgraft.server.aggregation.clipped import group_of

Floats = NDArray[np.float64]
Rule = Callable[[Floats, list[int], Floats], Floats]
"""From values (sites, coordinates), the numbers of those sites, and the values before: one value per coordinate."""

_CHUNK = 1 << 18
"""Coordinates worked on at a time, so that a large tensor of many sites needs little memory beside the updates."""


class RobustAggregator:
    """Keeps all updates until the end, and leaves those out of a head that have no labels for it."""

    def __init__(self, aggregate: Median | TrimmedMean | Krum, tags: Tags) -> None:
        self._aggregate = aggregate
        self._tags = tags
        self._updates: list[tuple[dict[str, np.ndarray], Mapping[str, float]]] = []

    def add(self, update: Update) -> None:
        """Keep a copy of a site's update: medians and the like need all of them at once."""
        copies = {key: array.copy() for key, array in update.tensors.items()}
        self._updates.append((copies, update.weights))

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """The aggregated entries, with the types that they have in `state`. RunError with too few sites."""
        if not self._updates:
            return {}
        rule = self._rule(state)
        aggregated = {}
        for key in self._updates[0][0]:
            tag = self._tags[key].task or TRUNK
            own = [number for number, (_, weights) in enumerate(self._updates) if weights[tag] > 0]
            if own:
                aggregated[key] = self._entry(key, own, state[key], rule)
        return aggregated

    def _rule(self, state: Arrays) -> Rule:
        match self._aggregate:
            case Median():
                return lambda values, _own, _before: np.asarray(np.median(values, axis=0))
            case TrimmedMean():
                trim = self._aggregate.trim
                return lambda values, _own, _before: _trimmed_mean(values, trim)
            case Krum():
                chosen = krum(self._distances(state), self._aggregate)
                return lambda values, own, before: _mean_of(values, own, before, chosen)

    def _distances(self, state: Arrays) -> Floats:
        """Squared distances of any two sites, (sites, sites): of parameters, statistics and counters, each over the
        median of its own, so that none of them drowns the others."""
        groups: dict[str, list[str]] = {}
        for key in self._updates[0][0]:
            groups.setdefault(group_of(key, self._tags, state), []).append(key)
        total = np.zeros((len(self._updates),) * 2)
        for keys in groups.values():
            rows = [
                np.concatenate([part[key].astype(np.float64).reshape(-1) for key in keys]) for part, _ in self._updates
            ]
            apart = np.array([[float(np.sum((a - b) ** 2)) for b in rows] for a in rows])
            total += apart / np.median(apart[apart > 0]) if apart.any() else apart
        return total

    def _entry(self, key: str, own: list[int], old: np.ndarray, rule: Rule) -> np.ndarray:
        parts = [self._updates[number][0][key].reshape(-1) for number in own]
        out = np.empty(old.size)
        for start in range(0, old.size, _CHUNK):
            place = slice(start, start + _CHUNK)
            values = np.stack([part[place].astype(np.float64) for part in parts])
            out[place] = rule(values, own, old.reshape(-1)[place].astype(np.float64))
        whole = old.dtype.kind in "iu"
        return (np.rint(out) if whole else out).astype(old.dtype).reshape(old.shape)


def krum(distances: Floats, aggregate: Krum) -> set[int]:
    """The updates with the least sums of squared distances to their n - f - 2 nearest. RunError with too few."""
    count, faulty = len(distances), aggregate.faulty
    if count < 2 * faulty + 3:
        raise RunError(
            f"Krum against {faulty} faulty sites needs {2 * faulty + 3} sites, and {count} answered.",
            fix="Lower aggregate.faulty, raise rounds.min_sites, or use median.",
        )
    others = distances + np.diag(np.full(count, np.inf))
    scores = np.sort(others, axis=1)[:, : count - faulty - 2].sum(axis=1)
    return set(np.argsort(scores, kind="stable")[: aggregate.keep].tolist())


def _trimmed_mean(values: Floats, trim: float) -> Floats:
    # Rounded up: with few sites the share asked for would else cut nobody.
    cut = min(int(np.ceil(trim * len(values) - 1e-9)), (len(values) - 1) // 2)
    return np.asarray(np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0))


def _mean_of(values: Floats, own: list[int], before: Floats, chosen: set[int]) -> Floats:
    rows = [row for row, number in enumerate(own) if number in chosen]
    return np.asarray(values[rows].mean(axis=0)) if rows else before
