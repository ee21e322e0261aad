"""The mean of changes, none of which is longer than most: norm clipping (Sun et al. 2019), weighted or not.

With D_i a site's change, b the bound and p_i its share of the whole, of which no site has more than `largest_share`,

    x = x + sum_i p_i min(1, b median(|D|) / |D_i|) D_i

Neither what a site sends nor how many cases it claims can then move the model far. Parameters, running statistics and
counters each have a norm of their own: a site cannot hide one behind another, and counters, which grow by hundreds in
a visit, do not loosen the bound on parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.protocol.instructions import TRUNK, Arrays, Update
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.plan import Role
from fedgraft.common.study.stages.aggregates import ClippedMean

Floats = NDArray[np.float64]


def group_of(key: str, tags: Tags, state: Arrays) -> str:
    """What an entry is measured together with: parameters, running statistics and counters have scales of their own."""
    if state[key].dtype.kind in "iu":
        return "counters"
    return "statistics" if tags[key].role is Role.NORM_STATS else "parameters"


class ClippedMeanAggregator:
    """Keeps all updates until the end, since the median of their norms is known only then."""

    def __init__(self, aggregate: ClippedMean, tags: Tags) -> None:
        self._aggregate = aggregate
        self._tags = tags
        self._updates: list[Update] = []

    def add(self, update: Update) -> None:
        """Keep a copy of a site's update."""
        self._updates.append(replace(update, tensors={key: array.copy() for key, array in update.tensors.items()}))

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """The aggregated entries, with the types that they have in `state`."""
        if not self._updates:
            return {}
        keys = list(self._updates[0].tensors)
        groups = {key: group_of(key, self._tags, state) for key in keys}
        factors = {
            group: self._factors([key for key in keys if groups[key] == group], state) for group in set(groups.values())
        }
        found = {}
        for key in keys:
            shares = self._shares(self._tags[key].task or TRUNK)
            if not shares.any():
                continue
            old = state[key].astype(np.float64)
            for share, factor, update in zip(shares, factors[groups[key]], self._updates, strict=True):
                if share:
                    old += share * factor * (update.tensors[key].astype(np.float64) - state[key])
            whole = state[key].dtype.kind in "iu"
            found[key] = (np.rint(old) if whole else old).astype(state[key].dtype)
        return found

    def _factors(self, keys: list[str], state: Arrays) -> Floats:
        """What brings each site's change of these entries down to the bound."""
        norms = np.array([_length(update.tensors, keys, state) for update in self._updates])
        most = self._aggregate.bound * float(np.median(norms))
        return np.array([most / norm if norm > most else 1.0 for norm in norms.tolist()])

    def _shares(self, name: str) -> Floats:
        """Each site's part of the whole, by what it counts for this task; no site has more than `largest_share`."""
        counts = np.array([update.weights[name] for update in self._updates])
        if self._aggregate.weight == "equal":
            counts = (counts > 0).astype(np.float64)
        return capped(counts, self._aggregate.largest_share) if counts.any() else counts


def capped(counts: Floats, most: float) -> Floats:
    """Shares (sites,) that add up to 1, in proportion to `counts`, but none above `most`: the rest goes to the others.

    Where so few sites count that they would not add up, all that count have the same.
    """
    there = counts > 0
    if most * there.sum() <= 1:
        return np.asarray(there / there.sum())
    fixed = np.zeros(len(counts), dtype=bool)
    shares = counts / counts.sum()
    while (shares > most + 1e-12).any():
        fixed |= shares > most
        rest = np.where(fixed, 0.0, counts)
        shares = np.where(fixed, most, rest / rest.sum() * (1 - most * fixed.sum()))
    return np.asarray(shares)


def _length(tensors: Mapping[str, np.ndarray], keys: list[str], state: Arrays) -> float:
    return float(np.sqrt(sum(float(np.square(tensors[key].astype(np.float64) - state[key]).sum()) for key in keys)))
