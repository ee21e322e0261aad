"""FedALA: a site begins with a mix of the common model and its own, number by number. Zhang et al. 2023."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedgraft.common.methods.memory.method import Ground, Left, Machine, Method, MethodVisit
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.states import NoState, State


@dataclass(frozen=True)
class Mix(State):
    """By entry of the upper layers: what the site's last visit ended with, and how much of the common one it takes."""

    entries: Arrays
    weights: Arrays

    owner: ClassVar[str] = "fedala"


class FedALA(Method[Mix, NoState]):
    """FedALA (Zhang et al. 2023, "FedALA: adaptive local aggregation for personalized federated learning").

    With x the common entries, y_i those that the site's last visit ended with, and W_i of the same shape, from 0 to 1,
    a visit begins for all entries at most `height` blocks above the heads' (0 is the heads alone) with

        y = y_i + (x - y_i) W_i        W_i = clip(W_i - eta grad L(y) (x - y_i), 0, 1)

    for each batch of a `share` of the site's cases, `passes` times; all below begins with x. W_i starts at 1. The paper
    learns it to convergence once, and then in one pass; here `passes` are the same in every visit. What the site's
    figures are of, and `predict --site` answers with, is the mix with W_i as it was learnt last.
    """

    kind: Literal["fedala"] = "fedala"
    height: Annotated[int, Field(ge=0)] = 1
    eta: Annotated[float, Field(gt=0)] = 1.0
    """The rate at which the mix is learnt."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.8
    passes: Annotated[int, Field(ge=1)] = 1

    summary: ClassVar[str] = "FedAvg whose sites begin with a learnt mix of the common model and theirs (Zhang et al.)"
    own_state: ClassVar[type[State]] = Mix
    not_private: ClassVar[str] = "the mix is learnt from the site's cases without noise"
    not_heads_first: ClassVar[str] = ""
    not_ahead: ClassVar[str] = ""

    @property
    def description(self) -> str:
        """Says "a learnt mix of the common model and the site's (FedALA, up to height 1)"."""
        return f"a learnt mix of the common model and the site's (FedALA, up to height {self.height})"

    def faults(self, on: Ground) -> Iterator[str]:
        """There must be something to mix."""
        if not self._upper(on):
            yield f"nothing up to height {self.height} is trained and shared, so there is nothing to mix"

    def begin_own(self, on: Ground, received: Arrays) -> Mix:
        """The common entries, taken whole."""
        upper = self._upper(on)
        return Mix({key: received[key] for key in upper}, {key: np.ones_like(received[key]) for key in upper})

    def start(self, visit: MethodVisit[Mix, NoState], machine: Machine) -> tuple[Mix, Arrays]:
        """The weights, learnt anew, and the mix."""
        own, received = visit.own, visit.received
        gaps = {key: received[key] - own.entries[key] for key in own.entries}
        if not any(gap.any() for gap in gaps.values()):
            return own, {}
        weights = {key: array.copy() for key, array in own.weights.items()}
        below = {key: machine.tensor(array) for key, array in received.items() if key in visit.on.shared}
        for number in range(self.passes):
            for cases in machine.batches(self.share, visit.on.spec.batch_size, visit.seed + number):
                here = {key: machine.tensor(own.entries[key] + gaps[key] * weights[key]) for key in gaps}
                slopes = machine.slope({**below, **here}, cases)
                for key, gap in gaps.items():
                    moved = weights[key] - np.float32(self.eta) * slopes[key].cpu().numpy() * gap
                    weights[key] = np.clip(moved, 0, 1).astype(gap.dtype)
        learnt = Mix(own.entries, weights)
        return learnt, self.answers(learnt, received)

    def after_visit(self, visit: MethodVisit[Mix, NoState], machine: Machine, trained: Arrays) -> Left[Mix]:
        """What this visit ended with."""
        del machine
        return Left(Mix({key: trained[key] for key in visit.own.entries}, visit.own.weights))

    def answers(self, own: Mix, received: Arrays) -> Arrays:
        """The mix."""
        return {
            key: (mine + (received[key] - mine) * own.weights[key]).astype(mine.dtype)
            for key, mine in own.entries.items()
        }

    def _upper(self, on: Ground) -> list[str]:
        return [key for key in on.shared if on.tags[key].height <= self.height]
