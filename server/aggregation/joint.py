"""The joint loss L_source + lambda L_target: what the source's weight is beside the hospitals'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedgraft.common.protocol.instructions import Update

Take = Callable[[Update], object]
"""What takes in an update."""


class Joint:
    """Passes updates on to an aggregation; those of sources come last, with weights that the hospitals' decide.

    In the mean over cases that an aggregation takes, all sources together count 1, and all hospitals together lambda:
    the weights of the sources add up to those of the hospitals over lambda, by task. A task that no hospital has labels
    for is the source's alone. Without lambda an update is passed on as it is.
    """

    def __init__(self, lam: float | None) -> None:
        self._lam = lam
        self._totals: dict[str, float] = {}
        self._sources: list[tuple[Update, Take]] = []

    def pass_on(self, update: Update, take: Take, *, of_source: bool) -> None:
        """Give an update to what takes it in; the source's is held back until the hospitals' weights are known."""
        if self._lam is not None and of_source:
            copies = {key: array.copy() for key, array in update.tensors.items()}
            self._sources.append((replace(update, tensors=copies), take))
            return
        for name, weight in update.weights.items():
            self._totals[name] = self._totals.get(name, 0.0) + weight
        take(update)

    def finish(self) -> None:
        """Give what was held back to what takes it in, with the source's share as its weight."""
        for update, take in self._sources:
            weights = {name: weight * self._factor(name) for name, weight in update.weights.items()}
            take(replace(update, weights=weights))

    def _factor(self, name: str) -> float:
        own = sum(update.weights.get(name, 0.0) for update, _ in self._sources)
        hospitals = self._totals.get(name, 0.0)
        return hospitals / (self._lam * own) if self._lam is not None and own and hospitals else 1.0
