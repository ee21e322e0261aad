"""The mean of what low-rank adapters add, B A, as two factors of their rank again; of all else the mean."""

from __future__ import annotations

import numpy as np

from fedgraft.common.models.backbones.merging import pairs
from fedgraft.common.protocol.instructions import TRUNK, Arrays, Update
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.plan import ADAPTERS
from fedgraft.common.study.stages.aggregates import AdaptersProduct, Mean
from fedgraft.server.aggregation.mean import MeanAggregator


class AdaptersAggregator:
    """Keeps the sites' factors until the end, which are small; the layers' whole products are never made."""

    def __init__(self, aggregate: AdaptersProduct, tags: Tags) -> None:
        self._equal = aggregate.weight == "equal"
        self._tags = tags
        self._mean = MeanAggregator(Mean(weight=aggregate.weight), tags)
        self._sites: list[tuple[dict[str, np.ndarray], float]] = []

    def add(self, update: Update) -> None:
        """Keep a copy of a site's adapters with its weight, and add all else to the mean."""
        adapters = {key: array.copy() for key, array in update.tensors.items() if self._tags[key].role in ADAPTERS}
        weight = float(update.weights[TRUNK] > 0) if self._equal else update.weights[TRUNK]
        if weight > 0:
            self._sites.append((adapters, weight))
        self._mean.add(update)

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """The means, and for every adapter the two factors, with the types and shapes that they have in `state`."""
        aggregated = self._mean.result(state)
        sent = self._sites[0][0] if self._sites else {}
        for a, b, _ in pairs({key: None for key in state if key in sent}):
            aggregated[a], aggregated[b] = self._split(a, b, state)
        return aggregated

    def _split(self, a: str, b: str, state: Arrays) -> tuple[np.ndarray, np.ndarray]:
        total = sum(weight for _, weight in self._sites)
        rank = state[a].shape[0]
        wide = np.vstack([own[a].reshape(rank, -1).astype(np.float64) for own, _ in self._sites])
        tall = np.hstack([weight / total * own[b].reshape(-1, rank).astype(np.float64) for own, weight in self._sites])
        length = float(np.linalg.norm(state[a].astype(np.float64))) / np.sqrt(rank)
        first, last = split_product(tall, wide, rank, length if length > 0 else 1.0)
        return (
            first.reshape(state[a].shape).astype(state[a].dtype),
            last.reshape(state[b].shape).astype(state[b].dtype),
        )


def split_product(tall: np.ndarray, wide: np.ndarray, rank: int, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Factors A (rank, inputs) and B (outputs, rank) of which B A is nearest to `tall` @ `wide`.

    A's rows are at right angles and of the given `length`, also where nothing is left for B to add, so that they can
    still be learnt. Each begins with its largest number above 0, so that the same product gives the same factors.
    """
    q_tall, r_tall = np.linalg.qr(tall)
    q_wide, r_wide = np.linalg.qr(wide.T)
    left, sizes, right = np.linalg.svd(r_tall @ r_wide.T, full_matrices=False)
    outputs, rows = (q_tall @ left * sizes)[:, :rank], (right @ q_wide.T)[:rank]
    missing = max(0, rank - len(rows))  # of a layer that is narrower than its adapter
    rows, outputs = np.pad(rows, ((0, missing), (0, 0))), np.pad(outputs, ((0, 0), (0, missing)))
    signs = np.sign(rows[np.arange(rank), np.abs(rows).argmax(axis=1)])
    signs[signs == 0] = 1.0
    return rows * (signs * length)[:, None], outputs * (signs / length)
