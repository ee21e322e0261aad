"""A method of one's own, which remembers something at each site: a pull towards where the site has ended so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from fedgraft.common.methods.memory.method import Ground, Left, Machine, Method, MethodStep, MethodVisit
from fedgraft.common.protocol.states import NoState, State


@dataclass(frozen=True)
class Trail(State):
    """By entry a running mean of what the site's visits have ended with."""

    mean: Mapping[str, np.ndarray]

    owner: ClassVar[str] = "lookback"


class Lookback(Method[Trail, NoState]):
    """With m the running mean of the entries that the site's visits ended with,

        loss = L + weight/2 |w - m|^2        m = decay m + (1 - decay) w

    so that a site does not swing to and fro. m begins as the common model. An example, and no method of any paper.
    """

    kind: Literal["lookback"] = "lookback"
    weight: Annotated[float, Field(gt=0)] = 0.1
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.5

    summary: ClassVar[str] = "FedAvg with a pull towards where each site has ended so far"
    own_state: ClassVar[type[State]] = Trail
    not_private: ClassVar[str] = ""
    not_heads_first: ClassVar[str] = ""
    not_ahead: ClassVar[str] = ""

    @property
    def description(self) -> str:
        """Says "a pull to where the site has ended (weight 0.1)"."""
        return f"a pull to where the site has ended (weight {self.weight:g})"

    def begin_own(self, on: Ground, received: Mapping[str, np.ndarray]) -> Trail:
        """The common model."""
        return Trail({key: received[key] for key in on.shared})

    def step(self, visit: MethodVisit[Trail, NoState], machine: Machine) -> MethodStep[Trail]:
        """By parameter the gradient weight (w - m)."""
        means = {key: machine.tensor(array) for key, array in visit.own.mean.items()}

        def regulariser() -> dict[str, Tensor]:
            return {key: self.weight * (machine.parameters[key].detach() - mean) for key, mean in means.items()}

        return MethodStep(regulariser=regulariser)

    def after_visit(
        self, visit: MethodVisit[Trail, NoState], machine: Machine, trained: Mapping[str, np.ndarray]
    ) -> Left[Trail]:
        """The running mean with this visit in it."""
        del machine
        keep, new = np.float32(self.decay), np.float32(1 - self.decay)
        return Left(Trail({key: keep * mean + new * trained[key] for key, mean in visit.own.mean.items()}))
