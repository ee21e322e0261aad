"""Gradients of heads on known features in closed form: no pass backwards, and no gradient of a case by itself.

With logits W z + b, a case's gradient of the cross-entropy is (p - y) [z; 1]', of norm |p - y| sqrt(|z|^2 + 1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.tasks import UNKNOWN, AnyTask, Multilabel, Regression


def errors(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    share: Tensor | None,
    tasks: Mapping[str, AnyTask] | None = None,
) -> dict[str, Tensor]:
    """By task the loss's slope in each output, (N, outputs), 0 where the label is not known; for classes p - y.

    Times `share` (N,), if cases share a unit. A task that is not among `tasks` asks for classes.
    """
    found = {}
    for task, answers in logits.items():
        asked = (tasks or {}).get(task)
        error = _slope(asked, answers, targets[task])
        if asked is not None and asked.weight != 1:
            error = error * asked.weight
        found[task] = error if share is None else error * share[:, None]
    return found


def _slope(task: AnyTask | None, answers: Tensor, target: Tensor) -> Tensor:
    if isinstance(task, Multilabel):
        return torch.where(target.isnan(), 0.0, torch.sigmoid(answers) - target)
    if isinstance(task, Regression):
        off = answers - ((target - task.mean) / task.std)[:, None]
        return torch.where(off.isnan(), 0.0, off.clamp(-1, 1))
    known = (target != UNKNOWN)[:, None].to(answers.dtype)
    error = torch.softmax(answers, dim=1).mul_(known)
    return error.scatter_add_(1, target.clamp(min=0)[:, None], -known)


def norms(found: Mapping[str, Tensor], lengths: Tensor) -> Tensor:
    """Of each case's gradient over all tasks' weights and biases together, (N,) in float64; `lengths` are |z|."""
    squares = [error.double().square().sum(dim=1) for error in found.values()]
    return torch.sqrt(sum(squares[1:], squares[0]) * (lengths.square() + 1))


def gradients(found: Mapping[str, Tensor], features: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By task the sums over the cases for weight (classes, dim) and bias (classes,)."""
    return {task: (error.T @ features, error.sum(dim=0)) for task, error in found.items()}


def by_case(found: Mapping[str, Tensor], features: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By task each case's own, (N, classes, dim) and (N, classes)."""
    return {task: (error[:, :, None] * features[:, None, :], error) for task, error in found.items()}
