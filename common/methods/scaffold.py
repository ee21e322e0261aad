"""SCAFFOLD: control variates against the drift of sites. Karimireddy et al. 2020, option II."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedgraft.common.methods.memory.method import (
    Ground,
    Left,
    Machine,
    Method,
    MethodStep,
    MethodVisit,
    Round,
    with_method,
)
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import Shapes
from fedgraft.common.protocol.states import State
from fedgraft.common.study.methods.recipes import NamedMethod, rounds_of
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.aggregates import Mean


@dataclass(frozen=True)
class Variates(State):
    """Control variates by entry: c at the coordinator, c_i at a site."""

    c: Arrays

    owner: ClassVar[str] = "scaffold"


class Scaffold(Method[Variates, Variates]):
    """SCAFFOLD (Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning").

    With x the coordinator's entries, y_i the site's after K steps of rate eta:

        y_i = y_i - eta (g(y_i) - c_i + c)        c_i = c_i - c + (x - y_i) / (K eta)

    With y the mean of the y_i and `share` the part of the sites that answered, c = c + share ((x - y) / (K eta) - c):
    the mean of the sites' own changes, without any of them sent.
    """

    kind: Literal["scaffold"] = "scaffold"

    summary: ClassVar[str] = (
        "FedAvg with control variates against the sites' drift, plain SGD (Karimireddy et al. 2020)"
    )
    own_state: ClassVar[type[State]] = Variates
    common_state: ClassVar[type[State]] = Variates
    travels: ClassVar[str] = "the coordinator's control variates come down"
    not_private: ClassVar[str] = "control variates are not built for private work; leave them out, or use feddyn"
    not_heads_first: ClassVar[str] = ""
    not_ahead: ClassVar[str] = ""

    @property
    def description(self) -> str:
        """Says "control variates (SCAFFOLD)"."""
        return "control variates (SCAFFOLD)"

    def faults(self, on: Ground) -> Iterator[str]:
        """Steps must say what they followed, and the coordinator how many there were."""
        if on.spec.optimiser != "sgd" or on.spec.momentum:
            yield "steps must be plain for their sum to say what they followed; use optimiser: sgd and momentum: 0"
        if on.spec.steps is None:
            yield "the coordinator must know how many steps every site takes; give steps, not epochs"
        if on.spec.clip_norm is not None:
            yield "clipped steps do not add up to what they followed; leave clip_norm out"
        if not isinstance(on.stage.aggregate, Mean):
            yield f"needs the sites' mean, but the aggregation is {on.stage.aggregate.kind}; use aggregate: mean"
        if not on.shared:
            yield "nothing that is trained is shared, so there is no drift to correct"

    def down(self, on: Ground) -> Mapping[str, Shapes]:
        """The coordinator's c, of all that is trained and shared."""
        return {"c": on.forms_of(on.shared)}

    def begin_common(self, on: Ground, start: Arrays) -> Variates:
        """Zeros."""
        del start
        return Variates(on.zeros(on.shared))

    def begin_own(self, on: Ground, received: Arrays) -> Variates:
        """Zeros."""
        del received
        return Variates(on.zeros(on.shared))

    def step(self, visit: MethodVisit[Variates, Variates], machine: Machine) -> MethodStep[Variates]:
        """By parameter the constant gradient c - c_i."""
        pulls = {key: machine.tensor(visit.common.c[key] - visit.own.c[key]) for key in visit.on.shared}
        return MethodStep(regulariser=lambda: pulls)

    def after_visit(self, visit: MethodVisit[Variates, Variates], machine: Machine, trained: Arrays) -> Left[Variates]:
        """The site's new c_i."""
        del machine
        found = {}
        for key in visit.on.shared:
            drift = (visit.received[key] - trained[key]) / np.float32(visit.on.way(key, visit.number))
            found[key] = np.asarray(visit.own.c[key] - visit.common.c[key] + drift, np.float32)
        return Left(Variates(found))

    def after_aggregation(self, state: Variates, done: Round) -> tuple[Variates, dict[str, np.ndarray]]:
        """The coordinator's new c, from what it aggregates anyway."""
        c = dict(state.c)
        for key in done.on.shared:
            if key in done.aggregated:
                old, before = c[key].astype(np.float64), done.before[key]
                drift = (before.astype(np.float64) - done.aggregated[key]) / done.on.way(key, done.number)
                c[key] = (old + done.share * (drift - old)).astype(before.dtype)
        return Variates(c), dict(done.aggregated)

    @classmethod
    def stages(cls, method: NamedMethod) -> tuple[Stage, ...]:
        """FedAvg with control variates, by plain steps as they need."""
        steps = {} if method.local.steps else {"epochs": None, "steps": 10}
        return (rounds_of(with_method(method, cls(), optimiser="sgd", momentum=0.0, **steps), "all"),)
