"""From the sites' updates to new state entries. Updates are taken one at a time, in a fixed order, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from common.closed_form import ridge_head, standard_scale
from common.errors import RunError
from common.orders import Arrays, Update
from common.plan import (
    ClippedMean,
    Krum,
    Mean,
    Median,
    Nothing,
    Ridge,
    ServerOptimiser,
    Stage,
    Standardise,
    TrimmedMean,
)
from common.travel import Tags
from server.mean import MeanMerger
from server.optimiser import ServerOptimiserMerger
from server.robust import RobustMerger


class Merger(Protocol):
    """Takes updates as they come, keeps only their sum, and turns it into new entries."""

    def add(self, update: Update) -> None:
        """Take in one site's update; its arrays are not kept."""

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """The entries that change, with the types that they have in `state`."""


def merger(stage: Stage, tags: Tags, memory: dict[str, np.ndarray] | None = None) -> Merger:
    """What merges the updates of this stage; `memory` is what it keeps from round to round, changed in place."""
    match stage.merge:
        case Mean():
            return MeanMerger(stage.merge, tags)
        case ServerOptimiser():
            return ServerOptimiserMerger(stage.merge, tags, {} if memory is None else memory)
        case Median() | TrimmedMean() | Krum() | ClippedMean():
            return RobustMerger(stage.merge, tags)
        case Ridge():
            return RidgeMerger(stage.merge)
        case Standardise():
            return StandardiseMerger(tags)
        case Nothing():
            return NothingMerger()


class _SumMerger:
    """Adds up arrays by name."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}

    def add(self, update: Update) -> None:
        """Add the site's sums."""
        for key, array in update.tensors.items():
            self._sums[key] = self._sums[key] + array if key in self._sums else array.copy()


class RidgeMerger(_SumMerger):
    """Sums of features and labels, then one ridge regression per task."""

    def __init__(self, merge: Ridge) -> None:
        super().__init__()
        self._merge = merge

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """Heads that solve the pooled problem. RunError if no site had a label."""
        heads = {}
        for task in sorted({key.partition("/")[0] for key in self._sums}):
            gram, cross = self._sums[f"{task}/gram"], self._sums[f"{task}/cross"]
            if gram[-1, -1] == 0:
                raise RunError(f"No site has a label for task {task!r}.", fix="Check the sites' label columns.")
            weight, bias = ridge_head(gram, cross, self._merge.strength)
            for name, value in (("weight", weight), ("bias", bias)):
                key = f"heads.{task}.{name}"
                heads[key] = (value * self._merge.scale).astype(state[key].dtype)
        return heads


class StandardiseMerger(_SumMerger):
    """Sums of columns, then the mean and deviation of the model's first layer."""

    def __init__(self, tags: Tags) -> None:
        super().__init__()
        self._keys = {name: next(key for key in tags if key.endswith(f".{name}")) for name in ("mean", "std")}

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """The standardising layer's entries."""
        mean, std = standard_scale(self._sums["count"], self._sums["sum"], self._sums["squares"])
        values: Mapping[str, np.ndarray] = {"mean": mean, "std": std}
        return {key: values[name].astype(state[key].dtype) for name, key in self._keys.items()}


class NothingMerger:
    """Nothing comes back, nothing changes."""

    def add(self, update: Update) -> None:
        """There is nothing to take in."""

    def result(self, state: Arrays) -> dict[str, np.ndarray]:  # noqa: ARG002 - the protocol's signature
        """No entry changes."""
        return {}
