"""What every loss may know of the visit it belongs to, and the two shapes a loss can have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.training.model.bound import Bound
from fedgraft.client.training.model.loader import Batch, Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.states import States
from fedgraft.common.study.plan import Gradient


@dataclass(frozen=True)
class VisitContext:
    """What a visit has besides the site's own cases.

    `received` are the coordinator's entries, `came` the states that came beside them, `methods` those of the stage.
    """

    received: Arrays = field(default_factory=dict)
    came: States = field(default_factory=States)
    methods: tuple[Bound, ...] = ()
    source: Loader | None = None


ALONE = VisitContext()
"""Nothing but the site's own cases."""


@dataclass(frozen=True)
class RoundContext:
    """Where in a plan a visit happens, and with what: `seed` is its own, `round` of `rounds` counts from 1."""

    seed: int
    round: int
    rounds: int
    visit_context: VisitContext = ALONE


@dataclass(frozen=True)
class Visit:
    """One visit's training: the model, what of it may change, and all that a loss may look at."""

    local_model: LocalModel
    spec: Gradient
    changes: Sequence[str]
    round_context: RoundContext
    loader: Loader
    class_weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def visit_context(self) -> VisitContext:
        """What there is besides the site's own cases."""
        return self.round_context.visit_context

    @property
    def trained(self) -> list[str]:
        """Keys of the parameters among `changes`; running statistics are none."""
        return [key for key in self.changes if key in self.local_model.parameters]

    def tensor(self, array: np.ndarray) -> Tensor:
        """A copy of an array as a tensor on the model's device."""
        return torch.tensor(array, device=self.local_model.device)


@dataclass(frozen=True)
class ForwardOutput:
    """A batch, and what the model says of it; features only where a loss asks for them."""

    batch: Batch
    outputs: Mapping[str, Tensor]
    features: Tensor | None = None


@dataclass(frozen=True)
class StepContext:
    """All that a step shows to the losses: the site's own batch, a batch of the source, how much of the stage is done.

    `progress` goes from 0 to 1 over all rounds of the stage.
    """

    target: ForwardOutput
    source: ForwardOutput | None
    progress: float


class LossFunction(Protocol):
    """A loss over the cases of a step: called once for each batch."""

    def __call__(self, step_context: StepContext) -> Tensor:
        """The loss's value before its weight, a scalar."""


class Regulariser(Protocol):
    """A loss that looks at the model's entries alone, whose gradient is known without any pass."""

    def __call__(self) -> Mapping[str, Tensor]:
        """Gradient by parameter, before the weight."""
