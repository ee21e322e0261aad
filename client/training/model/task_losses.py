"""The loss of one task of any kind, over what is known; nothing in it ties cases together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.data.tables.targets import known
from fedgraft.common.study.tasks import (
    UNKNOWN,
    AnyTask,
    Multilabel,
    Regression,
    Segmentation,
)


def task_loss(
    task: AnyTask | None,
    outputs: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    *,
    complete: bool = False,
) -> Tensor:
    """The mean over the batch's known labels, times the task's weight; 0 where none is known.

    Cross-entropy of classes, of each label alone (binary), Huber's loss of a value in units of `std`, and for masks the
    sum of binary cross-entropy and soft Dice loss of each image. `complete` says that no label is missing. No task
    means classes.
    """
    if isinstance(task, Multilabel | Regression | Segmentation):
        loss = _each(task, outputs.float(), target).sum() / label_mass(task, target).clamp(min=1)
    else:
        loss = _cross_entropy(outputs.float(), target, class_weights, complete=complete)
    return loss if task is None or task.weight == 1 else loss * task.weight


def case_losses(task: AnyTask | None, outputs: Tensor, target: Tensor) -> Tensor:
    """Each case's own loss, (N,), 0 where its label is not known; of labels the sum over the known ones."""
    if isinstance(task, Multilabel | Regression | Segmentation):
        loss = _each(task, outputs.float(), target).sum(dim=1)
    else:
        loss = F.cross_entropy(outputs.float(), target, ignore_index=UNKNOWN, reduction="none")
    return loss if task is None or task.weight == 1 else loss * task.weight


def losses_by_case(
    outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], tasks: Mapping[str, AnyTask] | None = None
) -> Tensor:
    """Each case's own loss, (N,), summed over the tasks whose label is known; without `tasks` all ask for classes."""
    each = [case_losses((tasks or {}).get(task), said, targets[task]) for task, said in outputs.items()]
    return torch.stack(each).sum(dim=0)


def _each(task: Multilabel | Regression | Segmentation, outputs: Tensor, target: Tensor) -> Tensor:
    """Losses, 0 where nothing is known: (N, labels), or (N, 1)."""
    if isinstance(task, Segmentation):
        return _mask_losses(outputs, target)
    if isinstance(task, Regression):
        target = ((target - task.mean) / task.std)[:, None]
    there = ~target.isnan()
    whole = torch.where(there, target, 0.0)
    if isinstance(task, Regression):
        losses = F.huber_loss(outputs, whole, reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(outputs, whole, reduction="none")
    return losses * there


def _mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Of each image, (N, 1): the mean binary cross-entropy plus 1 - (2 |p y| + 1) / (|p| + |y| + 1).

    Milletari et al. 2016, "V-Net", per image. The ones make it 0 for an empty mask that is predicted empty.
    """
    there = known(target)
    truth = (target == 1).float()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2))
    chance = torch.sigmoid(logits)
    both, whole = (chance * truth).sum((1, 2)), chance.sum((1, 2)) + truth.sum((1, 2))
    losses = entropy + 1 - (2 * both + 1) / (whole + 1)
    return (losses * there)[:, None]


def label_mass(task: AnyTask | None, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """What the sum of losses is divided by for their mean: how much is known, in all; 0 where nothing is."""
    if isinstance(task, Multilabel):
        return (~target.isnan()).sum()
    if isinstance(task, Regression | Segmentation):
        return known(target).sum()
    there = target != UNKNOWN
    return there.sum() if class_weights is None else (class_weights[target.clamp(min=0)] * there).sum()


def least_mass(class_weights: Tensor | None) -> float:
    """What is divided by at least, so that a mean over nothing is 0."""
    return 1.0 if class_weights is None else 1e-12


def _cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None, *, complete: bool) -> Tensor:
    """The mean over known labels; where none is missing, in one step."""
    if complete:
        return F.cross_entropy(logits, target, weights)
    total = F.cross_entropy(logits, target, weights, ignore_index=UNKNOWN, reduction="sum")
    return total / label_mass(None, target, weights).clamp(min=1 if weights is None else 1e-12)
