"""Gradients of heads on known features in closed form: no pass backwards, and no gradient of a case by itself.

With logits W z + b, a case's gradient of the cross-entropy is (p - y) [z; 1]', of norm |p - y| sqrt(|z|^2 + 1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedgraft.client.privacy.dp.gradients.checked_sums import product_of
from fedgraft.client.training.model.loader import Batch
from fedgraft.common.study.tasks import (
    UNKNOWN,
    AnyTask,
    Multilabel,
    Regression,
)


def errors(logits: Mapping[str, Tensor], batch: Batch, tasks: Mapping[str, AnyTask] | None = None) -> dict[str, Tensor]:
    """By task the loss's slope in each output, (outputs, N), 0 where the label is not known; for classes p - y.

    A task that is not among `tasks` asks for classes. Cases are columns, because over a few classes in a row a softmax
    takes ten times as long.
    """
    found = {}
    for task, answers in logits.items():
        asked = (tasks or {}).get(task)
        error = _slope(asked, answers.T.contiguous(), batch.targets[task], known=task in batch.known)
        if asked is not None and asked.weight != 1:
            error.mul_(asked.weight)
        found[task] = error
    return found


def _slope(task: AnyTask | None, answers: Tensor, target: Tensor, *, known: bool) -> Tensor:
    if isinstance(task, Multilabel):
        return torch.where(target.T.isnan(), 0.0, torch.sigmoid(answers) - target.T)
    if isinstance(task, Regression):
        off = answers - ((target - task.mean) / task.std)[None]
        return torch.where(target.isnan(), 0.0, off.clamp(-1, 1))
    error = torch.softmax(answers, dim=0)
    error.scatter_(0, target.clamp(min=0)[None], -1.0, reduce="add")
    return error if known else error.masked_fill_(target == UNKNOWN, 0.0)


def norms(found: Mapping[str, Tensor], lengths: Tensor) -> Tensor:
    """Of each case's gradient over all tasks' weights and biases together, (N,) in float64; `lengths` are |[z; 1]|."""
    squares = [error.double().square_().sum(dim=0) for error in found.values()]
    return sum(squares[1:], squares[0]).sqrt_().mul_(lengths)


def gradients(found: Mapping[str, Tensor], features: Tensor, of: int) -> dict[str, tuple[Tensor, Tensor]]:
    """By task the sums over the cases, which are some `of` so many, for weight (classes, dim) and bias (classes,)."""
    return {
        task: (product_of(error, features, of), error.sum(dim=1, dtype=torch.float64).to(features))
        for task, error in found.items()
    }


def by_case(found: Mapping[str, Tensor], features: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By task each case's own, (N, classes, dim) and (N, classes)."""
    return {task: (error.T[:, :, None] * features[:, None, :], error.T) for task, error in found.items()}
