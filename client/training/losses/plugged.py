"""Losses that plug-ins bring: called task by task with the cases whose label is known, and looked at before.

The class is made with the stage's `options`, and called by keyword with what it `requires`. With "labels" that is
`outputs` and `targets` of one task's cases whose label is known: class numbers (n,) with logits (n, classes); labels 1,
0 or NaN (n, labels) with logits; values in units of `std` (n,) with (n,); masks 1 or 0 (n, H, W) with logits. With
"outputs" it is `outputs` of all cases, with "features" `features` (n, dim). It gives (n,) if it is per sample, of which
the mean is taken, or one number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedgraft.client.data.tables.targets import known
from fedgraft.client.training.losses.base import ForwardOutput, LossFunction, StepContext, Visit
from fedgraft.common.study.stages.losses import PluggedLoss
from fedgraft.common.study.stages.tried_loss import TriedLoss
from fedgraft.common.study.tasks import AnyTask, Regression


class Plugged(TriedLoss):
    """A plug-in's loss, called with the cases of batches."""

    def mean(self, seen: ForwardOutput) -> Tensor:
        """Of a batch: the sum over tasks of the mean over cases, or of the one number."""
        if not self.facts.of_tasks:
            return _mean(self.value(None, {"features": seen.features}))
        return torch.stack([_mean(self._of_task(name, task, seen)) for name, task in self.tasks.items()]).sum()

    def by_case(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Each case's own loss (N,), summed over tasks, 0 where no label is known; of a loss per sample on labels."""
        return torch.stack([self._each(task, outputs[n], targets[n]) for n, task in self.tasks.items()]).sum(dim=0)

    def _each(self, task: AnyTask, outputs: Tensor, target: Tensor) -> Tensor:
        """Each case's loss (N,). Zeros go in where no label is known: how many there are changes no other's digits."""
        there = known(target)
        zeros = [torch.zeros((), dtype=one.dtype, device=one.device) for one in (outputs, target)]
        shown, told = (_where(there, one, zero) for one, zero in zip((outputs, target), zeros, strict=True))
        value = self._of_labels(task, shown, told)
        return _where(there, value, value.new_zeros(()))

    def _of_task(self, name: str, task: AnyTask, seen: ForwardOutput) -> Tensor:
        if "labels" in self.facts.requires:
            return self._of_labels(task, seen.outputs[name], seen.batch.targets[name], seen.features)
        return self.value(task, {"outputs": _plain(task, seen.outputs[name]), "features": seen.features})

    def _of_labels(self, task: AnyTask, outputs: Tensor, target: Tensor, features: Tensor | None = None) -> Tensor:
        there = known(target)
        targets = (target - task.mean) / task.std if isinstance(task, Regression) else target
        given = {"outputs": _plain(task, outputs)[there], "targets": targets[there]}
        return self.value(task, given | {"features": None if features is None else features[there]})


def plugged_loss(spec: PluggedLoss, visit: Visit) -> LossFunction:
    """The mean over the site's own cases, or the one number of a batch."""
    plugged = Plugged(spec, visit.local_model.tasks, visit.local_model.model.feature_dim)

    def loss(step_context: StepContext) -> Tensor:
        return plugged.mean(step_context.target)

    return loss


def _plain(task: AnyTask, outputs: Tensor) -> Tensor:
    """Outputs as losses are shown them: of values one number a case."""
    return outputs.float()[:, 0] if isinstance(task, Regression) and outputs.ndim == 2 else outputs.float()


def _where(there: Tensor, values: Tensor, otherwise: Tensor) -> Tensor:
    """Of each case its own `values` (N, ...), or the other one."""
    return torch.where(there.view(-1, *[1] * (values.ndim - 1)), values, otherwise)


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, values.numel())
