"""Losses that plug-ins bring: called task by task with the cases whose label is known, and looked at before.

The class is made with the stage's `options`, and called by keyword with what it `requires`. With "labels" that is
`outputs` and `targets` of one task's cases whose label is known: class numbers (n,) with logits (n, classes); labels 1,
0 or NaN (n, labels) with logits; values in units of `std` (n,) with (n,); masks 1 or 0 (n, H, W) with logits. With
"outputs" it is `outputs` of all cases, with "features" `features` (n, dim). It gives (n,) if it is per sample, of which
the mean is taken, or one number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedgraft.client.data.tables.targets import known
from fedgraft.client.training.losses.base import ForwardOutput, LossFunction, StepContext, Visit
from fedgraft.common.base.errors import ENDS, InputError
from fedgraft.common.plugins.registry import Kind, load
from fedgraft.common.study.stages.losses import PluggedLoss
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation

_CASES, _SIDE = 3, 4

Tasks = Mapping[str, AnyTask]


class Plugged:
    """A plug-in's loss for some tasks, and features of so many numbers.

    InputError if it cannot be made, or is not what it says it is.
    """

    def __init__(self, spec: PluggedLoss, tasks: Tasks, feature_dim: int) -> None:
        self._name, self._facts = spec.kind, spec.facts
        made = load(Kind.LOSSES, spec.kind)
        self._loss: Callable[..., Any] = self._tried(lambda: made(**spec.options), "cannot be made")
        self._tasks = {name: task for name, task in tasks.items() if task.kind in self._facts.tasks}
        if self._facts.scope == "per_sample":
            self._demand_alone(feature_dim)

    def mean(self, seen: ForwardOutput) -> Tensor:
        """Of a batch: the sum over tasks of the mean over cases, or of the one number."""
        if not self._facts.of_tasks:
            return _mean(self._value(None, {"features": seen.features}))
        return torch.stack([_mean(self._of_task(name, task, seen)) for name, task in self._tasks.items()]).sum()

    def by_case(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Each case's own loss (N,), summed over tasks, 0 where no label is known; of a loss per sample on labels."""
        whole = []
        for name, task in self._tasks.items():
            there = known(targets[name])
            value = self._of_labels(task, outputs[name], targets[name])
            whole.append(value.new_zeros(len(there)).index_put((there.nonzero()[:, 0],), value))
        return torch.stack(whole).sum(dim=0)

    def _of_task(self, name: str, task: AnyTask, seen: ForwardOutput) -> Tensor:
        if "labels" in self._facts.requires:
            return self._of_labels(task, seen.outputs[name], seen.batch.targets[name], seen.features)
        return self._value(task, {"outputs": _plain(task, seen.outputs[name]), "features": seen.features})

    def _of_labels(self, task: AnyTask, outputs: Tensor, target: Tensor, features: Tensor | None = None) -> Tensor:
        there = known(target)
        targets = (target - task.mean) / task.std if isinstance(task, Regression) else target
        given = {"outputs": _plain(task, outputs)[there], "targets": targets[there]}
        return self._value(task, given | {"features": None if features is None else features[there]})

    def _value(self, task: AnyTask | None, given: Mapping[str, Tensor | None]) -> Tensor:
        """What it says of these cases, (n,) or (1,), times the task's weight."""
        asked = {key: value for key, value in given.items() if value is not None and self._sees(key)}
        first = next(iter(asked.values()))
        if not len(first):  # of no case there is nothing to learn, and most losses would give no number
            return first.flatten()
        value = self._tried(lambda: self._loss(**asked), "fails")
        wanted = (len(first),) if self._facts.scope == "per_sample" else ()
        if not isinstance(value, Tensor) or tuple(value.shape) != wanted:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"The loss {self._name!r} is {self._facts.scope} and gives {found}, not {wanted}.")
        return (value if task is None or task.weight == 1 else value * task.weight).reshape(-1)

    def _sees(self, key: str) -> bool:
        if key in ("outputs", "targets"):
            return "labels" in self._facts.requires or key in self._facts.requires
        return key in self._facts.requires

    def _demand_alone(self, feature_dim: int) -> None:
        """Private training clips each case's gradient: it must be that case's alone, whatever the loss says of it."""
        for task in self._tasks.values() if self._facts.of_tasks else (None,):
            draw = torch.Generator().manual_seed(0)
            one, others = (
                {"features": torch.randn(_CASES, feature_dim, generator=draw)} | _examples(task, draw) for _ in "ab"
            )
            other = {key: torch.cat([value[:1], others[key][1:]]) for key, value in one.items()}
            first, second = (self._value(task, given)[0] for given in (one, other))
            if not torch.allclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True):
                raise InputError(
                    f"The loss {self._name!r} says that it is per_sample, and a case's loss depends on the others.",
                    fix='Set `scope = "per_batch"`, or look at each case by itself.',
                )

    def _tried(self, attempt: Callable[[], Any], what: str) -> Any:
        try:
            return attempt()
        except (InputError, torch.OutOfMemoryError, *ENDS):
            raise
        except BaseException as error:  # the code of others may raise anything
            raise InputError(f"The loss {self._name!r} {what}: {type(error).__name__}: {error}") from error


def plugged_loss(spec: PluggedLoss, visit: Visit) -> LossFunction:
    """The mean over the site's own cases, or the one number of a batch."""
    plugged = Plugged(spec, visit.local_model.tasks, visit.local_model.model.feature_dim)

    def loss(step_context: StepContext) -> Tensor:
        return plugged.mean(step_context.target)

    return loss


def _plain(task: AnyTask, outputs: Tensor) -> Tensor:
    """Outputs as losses are shown them: of values one number a case."""
    return outputs.float()[:, 0] if isinstance(task, Regression) and outputs.ndim == 2 else outputs.float()


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, values.numel())


def _examples(task: AnyTask | None, draw: torch.Generator) -> dict[str, Tensor]:
    """Outputs and targets of a few cases, all of them known."""
    if task is None:
        return {}
    if isinstance(task, Regression):
        return {"outputs": torch.randn(_CASES, generator=draw), "targets": torch.randn(_CASES, generator=draw)}
    shape = (_CASES, _SIDE, _SIDE) if isinstance(task, Segmentation) else (_CASES, task.outputs)
    outputs = torch.randn(*shape, generator=draw)
    if isinstance(task, Multilabel | Segmentation):
        return {"outputs": outputs, "targets": (torch.rand(*shape, generator=draw) < 0.5).to(outputs)}
    return {"outputs": outputs, "targets": torch.randint(task.outputs, (_CASES,), generator=draw)}
