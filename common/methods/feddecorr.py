"""FedDecorr: features of a batch must not all say the same. Shi et al. 2023."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fedgraft.common.methods.memory.method import Ground, Looked, Machine, Method, MethodStep, MethodVisit
from fedgraft.common.protocol.states import NoState

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_VARIANCE = 1e-8


class FedDecorr(Method[NoState, NoState]):
    """FedDecorr (Shi et al. 2023, "Towards understanding and mitigating dimensional collapse in heterogeneous federated
    learning").

    With K the (d, d) correlation matrix of a batch's features, each of its d features standardised over the batch:

        loss = L + beta / d^2 |K|_F^2

    Sites whose classes are few learn features of few dimensions; this keeps them apart. A batch of one case has no
    correlations, and adds nothing. Nothing is remembered, and nothing travels but the entries.
    """

    kind: Literal["feddecorr"] = "feddecorr"
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How much correlated features count beside the loss over labels."""

    summary: ClassVar[str] = "FedAvg whose features are kept from collapsing to few dimensions (Shi et al. 2023)"
    sees_features: ClassVar[bool] = True
    per_batch: ClassVar[bool] = True
    not_private: ClassVar[str] = "it compares the cases of a batch, so no case has a gradient of its own to be clipped"
    not_heads_first: ClassVar[str] = ""
    not_ahead: ClassVar[str] = ""

    @property
    def description(self) -> str:
        """Says "decorrelated features (FedDecorr, beta 0.1)"."""
        return f"decorrelated features (FedDecorr, beta {self.beta:g})"

    def faults(self, on: Ground) -> Iterator[str]:
        """It moves features."""
        if not on.below_heads:
            yield "moves features, but nothing below the heads is trained; train more"

    def step(self, visit: MethodVisit[NoState, NoState], machine: Machine) -> MethodStep[NoState]:
        """The loss of a batch's features."""
        del visit, machine

        def loss(looked: Looked) -> Tensor:
            assert looked.features is not None
            z = looked.features.float()
            if len(z) < 2:
                return 0 * z.sum()
            centred = z - z.mean(dim=0)
            standard = centred / (centred.square().sum(dim=0) / (len(z) - 1) + _LEAST_VARIANCE).sqrt()
            correlations = standard.T @ standard / (len(z) - 1)
            return self.beta * correlations.square().mean()

        return MethodStep(loss=loss)
