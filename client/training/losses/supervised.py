"""The loss over known labels: cross-entropy and its kin, task by task, weighted by task."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fedgraft.client.training.losses.base import ForwardOutput, LossFunction, Visit
from fedgraft.client.training.model.task_losses import task_loss
from fedgraft.common.study.stages.losses import Supervised
from fedgraft.common.study.tasks import AnyTask


def supervised_loss(spec: Supervised, visit: Visit) -> LossFunction:
    """Of the site's own cases, with the stage's class weights; or of the source's, as they are."""
    tasks = visit.local_model.tasks
    if spec.of == "target":
        return lambda step_context: _of(step_context.target, visit.class_weights, tasks)
    return lambda step_context: _of(step_context.source, {}, tasks)


def _of(seen: ForwardOutput | None, weights: Mapping[str, Tensor], tasks: Mapping[str, AnyTask]) -> Tensor:
    assert seen is not None
    batch = seen.batch
    return supervised(seen.outputs, batch.targets, weights, batch.known, tasks, batch.share)


def supervised(
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    known: Collection[str] = (),
    tasks: Mapping[str, AnyTask] | None = None,
    share: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Sum over tasks of their losses, each the mean over the batch's known labels; 0 for a task without any.

    In tasks named `known` no label is missing. A task that is not among `tasks` asks for classes. Of a part of a batch,
    `share` says by task how much it counts.
    """
    asked = tasks or {}
    losses = [
        task_loss(asked.get(task), answers, targets[task], weights.get(task), complete=share is None and task in known)
        for task, answers in outputs.items()
    ]
    if share is not None:
        losses = [loss * share[task] for task, loss in zip(outputs, losses, strict=True)]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
