"""The model's own sure guesses as labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.training.losses.base import LossFunction, StepContext, Visit
from fedgraft.common.study.stages.losses import PseudoLabel
from fedgraft.common.study.tasks import UNKNOWN


def pseudo_label_loss(spec: PseudoLabel, visit: Visit) -> LossFunction:  # noqa: ARG001 - every loss is built alike
    """Summed over tasks, of the site's cases whose label of the task is not known."""

    def loss(step_context: StepContext) -> Tensor:
        targets = step_context.target.batch.targets
        found = [
            pseudo(scores.float(), targets[task], spec.sure) for task, scores in step_context.target.outputs.items()
        ]
        return torch.stack(found).sum()

    return loss


def pseudo(scores: Tensor, target: Tensor, sure: float) -> Tensor:
    """The cross-entropy of sure guesses, the mean over all cases without a label, so that no case weighs on others."""
    likely, guess = scores.detach().softmax(dim=1).max(dim=1)
    unknown = target == UNKNOWN
    chosen = unknown & (likely >= sure)
    each = F.cross_entropy(scores, guess, reduction="none")
    return (each * chosen).sum() / unknown.sum().clamp(min=1)
