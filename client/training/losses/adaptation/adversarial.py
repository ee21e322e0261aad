"""A domain discriminator of domains behind a reversed gradient: DANN and CDAN."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.training.losses.base import (
    ForwardOutput,
    LossFunction,
    StepContext,
    Visit,
)
from fedgraft.common.study.stages.losses import Adversarial


def adversarial_loss(spec: Adversarial, visit: Visit) -> LossFunction:
    """The domain discriminator's cross-entropy between source (1) and target (0), each domain counting half.

    Ganin et al. 2016, equations 9 to 15, as one loss; the domain discriminator itself always learns at full strength.
    """
    domain_discriminator = visit.local_model.model.domain_discriminators[spec.domain_discriminator]

    def loss(step_context: StepContext) -> Tensor:
        assert step_context.source is not None
        strength = reversal(step_context.progress, spec.ramp)
        source, target = (
            domain_discriminator(Reversed.apply(_shown(seen, conditional=spec.conditional), strength))
            .squeeze(1)
            .float()
            for seen in (step_context.source, step_context.target)
        )
        of_source = F.binary_cross_entropy_with_logits(source, torch.ones_like(source))
        of_target = F.binary_cross_entropy_with_logits(target, torch.zeros_like(target))
        return 0.5 * (of_source + of_target)

    return loss


def reversal(progress: float, ramp: float) -> float:
    """How strong the reversed gradient is when `progress` (0 to 1) of the stage is done."""
    return 2 / (1 + math.exp(-ramp * progress)) - 1


def _shown(seen: ForwardOutput, *, conditional: bool) -> Tensor:
    """What the discriminator sees: features (N, d), or their products with all tasks' class probabilities (N, d C).

    The probabilities are given, as in Long et al. 2018: heads are not to be spoilt for the domain discriminator's sake.
    """
    assert seen.features is not None
    features = seen.features.float()
    if not conditional:
        return features
    likely = torch.cat([scores.detach().float().softmax(dim=1) for scores in seen.outputs.values()], dim=1)
    return torch.einsum("nc,nd->ncd", likely, features).flatten(1)


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned around and multiplied by a strength."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        """The identity; keeps `strength` for the way back."""
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient times -`strength`; `strength` itself has none."""
        return -ctx.strength * gradients[0], None
