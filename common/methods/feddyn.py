"""FedDyn: each site's loss is bent so that all of them end at the same point. Acar et al. 2021."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedgraft.common.methods.memory.method import Ground, Left, Machine, Method, MethodStep, MethodVisit, Round
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.states import State
from fedgraft.common.study.stages.aggregates import Mean

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Slopes(State):
    """By entry, in float32: g_i at a site, the slope of its loss where it ended; h at the coordinator."""

    slopes: Arrays

    owner: ClassVar[str] = "feddyn"


class FedDyn(Method[Slopes, Slopes]):
    """FedDyn (Acar et al. 2021, "Federated learning based on dynamic regularization").

    With x the coordinator's entries and L_i a site's loss, the site looks for

        y_i = argmin L_i(y) - <g_i, y> + alpha/2 |y - x|^2        g_i = g_i - alpha (y_i - x)

    and with y the mean of the y_i and `share` the part of the sites that answered,

        h = h - alpha share (y - x)        x = y - h / alpha

    Where it comes to rest, the mean of the sites' slopes is 0, as at the optimum of the pooled loss. Running statistics
    are averaged as ever. Nothing goes up or down beside the entries.
    """

    kind: Literal["feddyn"] = "feddyn"
    alpha: Annotated[float, Field(gt=0)] = 0.1
    """How strongly a site's entries are drawn to the coordinator's."""

    summary: ClassVar[str] = "FedAvg whose sites' losses are bent towards one common optimum (Acar et al. 2021)"
    own_state: ClassVar[type[State]] = Slopes
    common_state: ClassVar[type[State]] = Slopes
    not_private: ClassVar[str] = ""
    not_heads_first: ClassVar[str] = ""
    not_ahead: ClassVar[str] = ""

    @property
    def description(self) -> str:
        """Says "dynamic regularisation (FedDyn, alpha 0.1)"."""
        return f"dynamic regularisation (FedDyn, alpha {self.alpha:g})"

    def faults(self, on: Ground) -> Iterator[str]:
        """It needs the sites' mean of something that all train."""
        if not isinstance(on.stage.aggregate, Mean):
            yield f"needs the sites' mean, but the aggregation is {on.stage.aggregate.kind}; use aggregate: mean"
        if not on.shared:
            yield "nothing that is trained is shared, so there is no common optimum to find"

    def begin_common(self, on: Ground, start: Arrays) -> Slopes:
        """Zeros."""
        del start
        return Slopes(on.zeros(on.shared))

    def begin_own(self, on: Ground, received: Arrays) -> Slopes:
        """Zeros."""
        del received
        return Slopes(on.zeros(on.shared))

    def step(self, visit: MethodVisit[Slopes, Slopes], machine: Machine) -> MethodStep[Slopes]:
        """By parameter the gradient alpha (y - x) - g_i."""
        slopes = {key: machine.tensor(visit.own.slopes[key]) for key in visit.on.shared}
        centres = {key: machine.tensor(visit.received[key]) for key in visit.on.shared}

        def regulariser() -> dict[str, Tensor]:
            here = machine.parameters
            return {key: self.alpha * (here[key].detach() - centres[key]) - slopes[key] for key in centres}

        return MethodStep(regulariser=regulariser)

    def after_visit(self, visit: MethodVisit[Slopes, Slopes], machine: Machine, trained: Arrays) -> Left[Slopes]:
        """The site's new g_i."""
        del machine
        old, alpha = visit.own.slopes, np.float32(self.alpha)
        return Left(Slopes({key: old[key] - alpha * (trained[key] - visit.received[key]) for key in visit.on.shared}))

    def after_aggregation(self, state: Slopes, done: Round) -> tuple[Slopes, dict[str, np.ndarray]]:
        """The coordinator's new h, and the mean less h / alpha."""
        h, entries = dict(state.slopes), dict(done.aggregated)
        for key in done.on.shared:
            if key in done.aggregated:
                kind, mean = done.before[key].dtype, done.aggregated[key].astype(np.float64)
                h[key] = (h[key] - self.alpha * done.share * (mean - done.before[key])).astype(kind)
                entries[key] = (mean - h[key].astype(np.float64) / self.alpha).astype(kind)
        return Slopes(h), entries
