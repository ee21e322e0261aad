"""A plug-in's loss, made and tried out on made-up cases: what is not as it says is known before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedgraft.common.base.errors import ENDS, InputError
from fedgraft.common.plugins.registry import Kind, load
from fedgraft.common.study.stages.losses import PluggedLoss
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation

_CASES, _SIDE = 3, 4

Tasks = Mapping[str, AnyTask]


class TriedLoss:
    """A plug-in's loss for some tasks, and features of so many numbers; with None it is not tried on features.

    InputError if it cannot be made, or is not what it says it is.
    """

    def __init__(self, spec: PluggedLoss, tasks: Tasks, feature_dim: int | None) -> None:
        self._name, self.facts = spec.kind, spec.facts
        made = load(Kind.LOSSES, spec.kind)
        self._loss: Callable[..., Any] = self._tried(lambda: made(**spec.options), "cannot be made")
        self.tasks = {name: task for name, task in tasks.items() if task.kind in self.facts.tasks}
        known = feature_dim is not None or "features" not in self.facts.requires
        if self.facts.scope == "per_sample" and known:
            self._demand_alone(feature_dim or 1)

    def value(self, task: AnyTask | None, given: Mapping[str, Tensor | None]) -> Tensor:
        """What it says of these cases, (n,) or (1,), times the task's weight."""
        asked = {key: value for key, value in given.items() if value is not None and self._sees(key)}
        first = next(iter(asked.values()))
        if not len(first):  # of no case there is nothing to learn, and most losses would give no number
            return first.flatten()
        value = self._tried(lambda: self._loss(**asked), "fails")
        wanted = (len(first),) if self.facts.scope == "per_sample" else ()
        if not isinstance(value, Tensor) or tuple(value.shape) != wanted:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"The loss {self._name!r} is {self.facts.scope} and gives {found}, not {wanted}.")
        return (value if task is None or task.weight == 1 else value * task.weight).reshape(-1)

    def _sees(self, key: str) -> bool:
        if key in ("outputs", "targets"):
            return "labels" in self.facts.requires or key in self.facts.requires
        return key in self.facts.requires

    def _demand_alone(self, feature_dim: int) -> None:
        """Private training clips each case's gradient: it must be that case's alone, whatever the loss says of it."""
        for task in self.tasks.values() if self.facts.of_tasks else (None,):
            draw = torch.Generator().manual_seed(0)
            one, others = (
                {"features": torch.randn(_CASES, feature_dim, generator=draw)} | _examples(task, draw) for _ in "ab"
            )
            other = {key: torch.cat([value[:1], others[key][1:]]) for key, value in one.items()}
            first, second = (self.value(task, given)[0] for given in (one, other))
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
