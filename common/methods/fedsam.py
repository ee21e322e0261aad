"""FedSAM: steps along the gradient where the loss is worst nearby, which end in flat places. Qu et al. 2022."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fedgraft.common.methods.memory.method import Machine, Method, MethodStep, MethodVisit, Pass
from fedgraft.common.protocol.states import NoState

if TYPE_CHECKING:
    from torch import Tensor


class FedSAM(Method[NoState, NoState]):
    """FedSAM (Qu et al. 2022, "Generalized federated learning via sharpness aware minimization").

    With g the gradient of a step's cases, each local step takes the gradient of the same cases elsewhere:

        e = rho g(w) / |g(w)|        w = w - eta g(w + e)

    The norm is over all that is trained. Running statistics are moved by the first of the two passes alone. Nothing is
    remembered, and nothing travels but the entries.
    """

    kind: Literal["fedsam"] = "fedsam"
    rho: Annotated[float, Field(gt=0)] = 0.05
    """How far away, in the norm of all that is trained."""

    summary: ClassVar[str] = "FedAvg by sharpness-aware steps, which end in flat places (Qu et al. 2022)"
    not_private: ClassVar[str] = "its steps take two gradients of the same cases, of which only one would be clipped"
    not_heads_first: ClassVar[str] = ""
    not_ahead: ClassVar[str] = ""

    @property
    def description(self) -> str:
        """Says "sharpness-aware steps (FedSAM, rho 0.05)"."""
        return f"sharpness-aware steps (FedSAM, rho {self.rho:g})"

    def step(self, visit: MethodVisit[NoState, NoState], machine: Machine) -> MethodStep[NoState]:
        """Two passes: the first says where to look, the second what to follow."""
        trained = [machine.parameters[key] for key in visit.on.trained]

        def around(one_pass: Pass, progress: float) -> Tensor:
            del progress
            loss = one_pass()
            parts = [p.grad.norm() for p in trained if p.grad is not None]
            length = sum(part.square() for part in parts).sqrt().clamp(min=1e-12)
            moves = [(p, self.rho / length * p.grad) for p in trained if p.grad is not None]
            before = [p.detach().clone() for p, _ in moves]
            for p, move in moves:
                p.data.add_(move)
                p.grad = None
            with machine.still():
                one_pass()
            for (p, _), old in zip(moves, before, strict=True):
                p.data.copy_(old)
            return loss

        return MethodStep(around=around)
