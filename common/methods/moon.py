"""MOON: a site's features are drawn to the common model's, and away from its own of before. Li et al. 2021."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fedgraft.common.methods.memory.method import Ground, Left, Looked, Machine, Method, MethodStep, MethodVisit
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.states import NoState, State

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Previous(State):
    """The entries that the site's last visit ended with, of all that it trained."""

    entries: Arrays

    owner: ClassVar[str] = "moon"


class Moon(Method[Previous, NoState]):
    """MOON (Li, He and Song 2021, "Model-contrastive federated learning").

    With z a case's features, z_glob those of the common model, z_prev those of the site's model of its last visit, and
    sim the cosine of two of them:

        loss = L - mu mean log exp(sim(z, z_glob) / t) / (exp(sim(z, z_glob) / t) + exp(sim(z, z_prev) / t))

    Features are what the heads see, in place of the paper's projection head. Before a site's first visit its model is
    the common one. Both other models answer as in evaluation. Nothing travels but the entries.
    """

    kind: Literal["moon"] = "moon"
    mu: Annotated[float, Field(gt=0)] = 1.0
    """How much the contrast counts beside the loss over labels."""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """What similarities are divided by."""

    summary: ClassVar[str] = "FedAvg whose features are drawn to the common model's, not its last (Li et al. 2021)"
    sees_features: ClassVar[bool] = True
    per_batch: ClassVar[bool] = True
    own_state: ClassVar[type[State]] = Previous
    not_private: ClassVar[str] = "its loss beside the labels' is not built for gradients of single cases"
    not_heads_first: ClassVar[str] = ""
    not_ahead: ClassVar[str] = ""

    @property
    def description(self) -> str:
        """Says "model-contrastive features (MOON, mu 1, temperature 0.5)"."""
        return f"model-contrastive features (MOON, mu {self.mu:g}, temperature {self.temperature:g})"

    def faults(self, on: Ground) -> Iterator[str]:
        """It moves features."""
        if not on.below_heads:
            yield "moves features, but nothing below the heads is trained; train more"

    def begin_own(self, on: Ground, received: Arrays) -> Previous:
        """The common model."""
        return Previous({key: received[key] for key in on.changed})

    def step(self, visit: MethodVisit[Previous, NoState], machine: Machine) -> MethodStep[Previous]:
        """The contrastive loss of a batch."""
        common, previous = machine.twin(visit.received), machine.twin({**visit.received, **visit.own.entries})

        def loss(looked: Looked) -> Tensor:
            assert looked.features is not None
            z, inputs = looked.features.float(), looked.batch.inputs
            near, far = (_cosine(z, twin(inputs)[0].float()) / self.temperature for twin in (common, previous))
            # -log exp(near) / (exp(near) + exp(far)), without either overflowing
            return self.mu * (far - near).exp().log1p().mean()

        return MethodStep(loss=loss)

    def after_visit(self, visit: MethodVisit[Previous, NoState], machine: Machine, trained: Arrays) -> Left[Previous]:
        """What this visit ended with."""
        del machine
        return Left(Previous({key: trained[key] for key in visit.on.changed}))


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    lengths: Tensor = one.norm(dim=1) * other.norm(dim=1)
    return (one * other).sum(dim=1) / lengths.clamp(min=1e-8)
