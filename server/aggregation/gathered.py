"""The sums that a stage's methods ask of sites, taken out of their updates and added up, in float64."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from fedgraft.common.protocol.instructions import Arrays, Update
from fedgraft.server.aggregation.aggregator import Aggregator


class Gathered:
    """Passes updates on to the stage's aggregation, without the sums that are at these `places`."""

    def __init__(self, aggregator: Aggregator, places: Collection[str]) -> None:
        self._aggregator = aggregator
        self._places = frozenset(places)
        self.sums: dict[str, np.ndarray] = {}
        """Over the sites so far, by address."""

    def add(self, update: Update) -> None:
        """Add a site's sums, and give all else to the aggregation."""
        for place in sorted(self._places & update.tensors.keys()):
            part = update.tensors[place].astype(np.float64)
            self.sums[place] = self.sums[place] + part if place in self.sums else part
        if self._places:
            rest = {key: array for key, array in update.tensors.items() if key not in self._places}
            update = replace(update, tensors=rest)
        self._aggregator.add(update)

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """The entries that the aggregation ends with."""
        return self._aggregator.result(state)
