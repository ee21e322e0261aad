"""Information maximisation: sure about every case, even over the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgraft.client.training.losses.base import LossFunction, Visit
from fedgraft.common.study.stages.losses import InfoMax


def infomax_loss(spec: InfoMax, visit: Visit) -> LossFunction:  # noqa: ARG001 - every loss is built alike
    """Summed over tasks, of all the site's cases, with labels or without (Liang et al. 2020, equation 2)."""
    return lambda step_context: torch.stack(
        [infomax(scores.float(), spec.diversity) for scores in step_context.target.outputs.values()]
    ).sum()


def infomax(scores: Tensor, diversity: float) -> Tensor:
    """mean_i H(p_i) - diversity H(mean_i p_i), of logits (N, classes)."""
    log = scores.log_softmax(dim=1)
    mean = log.exp().mean(dim=0)
    return _entropy(log.exp(), log).mean() - diversity * _entropy(mean, mean.clamp(min=1e-12).log())


def _entropy(likely: Tensor, log: Tensor) -> Tensor:
    return -(likely * log).sum(dim=-1)
