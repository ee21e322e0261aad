"""APFL: each site answers with a mix of the common model and one of its own, trained side by side. Deng et al. 2020."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedgraft.common.methods.memory.method import Ground, Left, Machine, Method, MethodStep, MethodVisit, Pass
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.states import NoState, State

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Own(State):
    """The site's own model v by entry, and how much of it counts, `alpha`."""

    v: Arrays
    share: Arrays

    owner: ClassVar[str] = "apfl"


class APFL(Method[Own, NoState]):
    """APFL (Deng, Kamani and Mahdavi 2020, "Adaptive personalized federated learning").

    With w the site's copy of the common model, v its own, f the loss of a step's cases and eta the rate,

        u = alpha v + (1 - alpha) w        v = v - eta alpha grad f(u)        w = w - eta grad f(w)

    and, if it is `adaptive`, alpha = clip(alpha - eta <v - w, grad f(u)>, 0, 1), all from what was before the step. v
    takes plain steps, w those of the stage's optimiser; w alone is sent. What the site's figures are of, and `predict
    --site` answers with, is u of its v and the common model. Running statistics are the common model's.
    """

    kind: Literal["apfl"] = "apfl"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The share of the site's own model in the mix, at first."""
    adaptive: bool = False

    summary: ClassVar[str] = "FedAvg beside a model of each site's own, mixed into its answers (Deng et al. 2020)"
    own_state: ClassVar[type[State]] = Own
    not_private: ClassVar[str] = "its steps take two gradients of the same cases, of which only one would be clipped"
    not_heads_first: ClassVar[str] = ""
    not_ahead: ClassVar[str] = "the site's own model would take a step with each of them, and none is taken back"

    @property
    def description(self) -> str:
        """Says "a model of the site's own, mixed in (APFL, alpha 0.5)"."""
        return (
            f"a model of the site's own, mixed in (APFL, alpha {self.alpha:g}{', adaptive' if self.adaptive else ''})"
        )

    def faults(self, on: Ground) -> Iterator[str]:
        """There must be a common model."""
        if not on.shared:
            yield "nothing that is trained is shared, so there is no common model to mix with"

    def begin_own(self, on: Ground, received: Arrays) -> Own:
        """The common model."""
        return Own({key: received[key] for key in on.shared}, {"alpha": np.array(self.alpha)})

    def step(self, visit: MethodVisit[Own, NoState], machine: Machine) -> MethodStep[Own]:
        """A pass at u that moves v, before the one at w."""
        v = {key: machine.tensor(array) for key, array in visit.own.v.items()}
        alpha = [float(visit.own.share["alpha"])]

        def around(one_pass: Pass, progress: float) -> Tensor:
            here = {key: machine.parameters[key] for key in v}
            w = {key: p.detach().clone() for key, p in here.items()}
            for key, p in here.items():
                p.data.copy_(alpha[0] * v[key] + (1 - alpha[0]) * w[key])
            with machine.still():
                one_pass()
            slopes = {key: p.grad.clone() for key, p in here.items() if p.grad is not None}
            for p in machine.parameters.values():
                p.grad = None
            for key, p in here.items():
                p.data.copy_(w[key])
            before = alpha[0]
            if self.adaptive:
                along = sum(float(((v[k] - w[k]) * g).sum()) * visit.on.rate(k, progress) for k, g in slopes.items())
                alpha[0] = min(max(before - along, 0.0), 1.0)
            for key, slope in slopes.items():
                v[key].add_(slope, alpha=-visit.on.rate(key, progress) * before)
            return one_pass()

        def own() -> Own:
            return Own({key: t.cpu().numpy().copy() for key, t in v.items()}, {"alpha": np.array(alpha[0])})

        return MethodStep(around=around, own=own)

    def after_visit(self, visit: MethodVisit[Own, NoState], machine: Machine, trained: Arrays) -> Left[Own]:
        """What the steps have made of it."""
        del machine, trained
        return Left(visit.own)

    def answers(self, own: Own, received: Arrays) -> Arrays:
        """The mix u of the site's own model and the common one."""
        alpha = np.float32(own.share["alpha"])
        return {key: (alpha * v + (1 - alpha) * received[key]).astype(v.dtype) for key, v in own.v.items()}
