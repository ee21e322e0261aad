"""Server optimisers: the sites' mean change is a gradient, and the coordinator takes a step of its own along it.

With x the entries, D the weighted mean of the sites' changes and all operations by coordinate:

    m = b1 m + (1 - b1) D                  sgd: m = b1 m + D (Hsu et al. 2019, FedAvgM; b1 = 0 is FedAvg, or Reptile)
    adagrad: v = v + D^2
    yogi:    v = v - (1 - b2) D^2 sign(v - D^2)
    adam:    v = b2 v + (1 - b2) D^2
    x = x + lr m / (sqrt(v) + tau)         sgd: x = x + lr m

Reddi et al. 2021, "Adaptive federated optimization", algorithm 2; v starts at tau^2. Running statistics and whole
numbers are averaged as ever: a step beyond their mean could make a variance negative.
"""

from __future__ import annotations

import numpy as np

from fedgraft.common.protocol.instructions import Arrays, Update
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.plan import Role
from fedgraft.common.study.stages.aggregates import Mean, ServerOptimiser
from fedgraft.server.aggregation.mean import MeanAggregator

_AVERAGED = frozenset({Role.NORM_STATS, Role.SCALE})


class ServerOptimiserAggregator:
    """One round's step. `memory` holds m and v of earlier rounds of the stage, and afterwards those of this one."""

    def __init__(self, aggregate: ServerOptimiser, tags: Tags, memory: dict[str, np.ndarray]) -> None:
        self._aggregate = aggregate
        self._tags = tags
        self._memory = memory
        self._mean = MeanAggregator(Mean(weight=aggregate.weight), tags)

    def add(self, update: Update) -> None:
        """Add a site's entries to the mean, whose change is the gradient."""
        self._mean.add(update)

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """The entries after one step of the server's optimiser; running statistics are the mean's."""
        aggregated = self._mean.result(state)
        for key, mean in self._mean.means():
            old = state[key]
            if self._tags[key].role not in _AVERAGED and old.dtype.kind == "f":
                aggregated[key] = (old + self._step(key, mean - old)).astype(old.dtype)
        return aggregated

    def _step(self, key: str, change: np.ndarray) -> np.ndarray:
        aggregate, memory = self._aggregate, self._memory
        first = memory.get(f"m/{key}", 0.0) * aggregate.momentum
        if aggregate.rule == "sgd":
            memory[f"m/{key}"] = np.asarray(first + change)
            return aggregate.lr * memory[f"m/{key}"]
        memory[f"m/{key}"] = np.asarray(first + (1 - aggregate.momentum) * change)
        second, square = memory.get(f"v/{key}", np.full_like(change, aggregate.tau**2)), change**2
        match aggregate.rule:
            case "adagrad":
                second = second + square
            case "yogi":
                second = second - (1 - aggregate.beta2) * square * np.sign(second - square)
            case "adam":
                second = aggregate.beta2 * second + (1 - aggregate.beta2) * square
        memory[f"v/{key}"] = second
        return np.asarray(aggregate.lr * memory[f"m/{key}"] / (np.sqrt(second) + aggregate.tau))
