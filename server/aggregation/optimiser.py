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

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedgraft.common.protocol.instructions import Arrays, Update
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.protocol.states import State, States
from fedgraft.common.study.plan import Role, Stage
from fedgraft.common.study.stages.aggregates import Mean, ServerOptimiser
from fedgraft.server.aggregation.mean import MeanAggregator

_AVERAGED = frozenset({Role.NORM_STATS, Role.SCALE})


@dataclass(frozen=True)
class Averages(State):
    """The running averages m and v, by entry."""

    m: Arrays
    v: Arrays

    owner: ClassVar[str] = "server_optimiser"


class ServerOptimiserAggregator:
    """One round's step. Among the `states` are m and v of earlier rounds of the stage, and then those of this one."""

    def __init__(self, stage: Stage, aggregate: ServerOptimiser, tags: Tags, states: States) -> None:
        self._stage = stage.name
        self._aggregate = aggregate
        self._tags = tags
        self._states = states
        before = states.get(stage.name, Averages) or Averages({}, {})
        self._m, self._v = dict(before.m), dict(before.v)
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
        self._states.put(self._stage, Averages(self._m, self._v))
        return aggregated

    def _step(self, key: str, change: np.ndarray) -> np.ndarray:
        aggregate = self._aggregate
        first = self._m.get(key, 0.0) * aggregate.momentum
        if aggregate.rule == "sgd":
            self._m[key] = np.asarray(first + change)
            return aggregate.lr * self._m[key]
        self._m[key] = np.asarray(first + (1 - aggregate.momentum) * change)
        second, square = self._v.get(key, np.full_like(change, aggregate.tau**2)), change**2
        match aggregate.rule:
            case "adagrad":
                second = second + square
            case "yogi":
                second = second - (1 - aggregate.beta2) * square * np.sign(second - square)
            case "adam":
                second = aggregate.beta2 * second + (1 - aggregate.beta2) * square
        self._v[key] = second
        return np.asarray(aggregate.lr * self._m[key] / (np.sqrt(second) + aggregate.tau))
