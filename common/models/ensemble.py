"""Several finished models as one backbone: frozen, asked together, each divided by a temperature of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression

MEAN_SCALE = 2.0**-10
"""What the mean answer is multiplied with among the features; a power of two, so that heads can undo it exactly."""

_AT_ONCE = 32
"""As many numbers as a processor takes at once, at most: two registers of 512 bits."""


class Temperature(nn.Module):
    """What one task's logits are divided by, one number for each base model; 1 until the sites' sums say better."""

    values: Tensor

    def __init__(self, base_models: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.ones(base_models))

    def forward(self, logits: Tensor) -> Tensor:
        """(N, base models, outputs) to the same, calibrated."""
        return logits / self.values[:, None]


class Ensemble(nn.Module):
    """Base models answer for themselves; features are, task by task, their mean answer and then each one's own.

    The mean (N, outputs) is that of the calibrated probabilities, as logits again: its softmax (or sigmoid) is the mean
    itself. It comes times `MEAN_SCALE`, so small that a ridge on features as they are leaves it alone. Each one's own
    are its calibrated probabilities, which a ridge weighs better than logits, where one case of which a base model is
    too sure counts as much as many. Values have no temperature and stay as they are. Base models are frozen,
    whatever is asked.
    """

    def __init__(self, base_models: Sequence[nn.Module], tasks: Mapping[str, AnyTask]) -> None:
        super().__init__()
        self.base_models = nn.ModuleList(base_models)
        self.temperatures = nn.ModuleDict({task: Temperature(len(base_models)) for task in tasks})
        self._tasks = dict(sorted(tasks.items()))  # so that features lie alike however a study lists its tasks
        self.feature_dim = sum(self._width(task) for task in tasks)
        self.train(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 - torch's signature
        """Stays in eval whatever `mode` is, since base models are frozen."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (N, columns) to (N, feature_dim)."""
        parts: list[Tensor] = []
        for name, found in self.logits(x).items():
            logits = without_an_end(found)
            parts += [MEAN_SCALE * averaged(self._tasks[name], logits), likely(self._tasks[name], logits).flatten(1)]
        return torch.cat(parts, dim=1)[: len(x)]

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        """Each base model's calibrated logits, or values, by task, (N, base models, outputs)."""
        answers = [base_model(x) for base_model in self.base_models]
        return {
            name: self.temperatures[name](torch.stack([own[name].float() for own in answers], dim=1))
            for name in self._tasks
        }

    def mean_at(self, task: str) -> int:
        """Where in the features a task's mean answer begins."""
        names = list(self._tasks)
        before = names[: names.index(task)]
        return sum(self._width(name) for name in before)

    def _width(self, task: str) -> int:
        return (1 + len(self.base_models)) * self._tasks[task].outputs


def without_an_end(rows: Tensor) -> Tensor:
    """The rows, and then the first one again until the processor takes all numbers in whole registers.

    What is left over at the end of an array goes through other code, whose sigmoid may differ in a digit: of rows with
    few numbers these are several. Nothing flows back to what is added.
    """
    missing = -len(rows) % _AT_ONCE
    return torch.cat([rows, rows[:1].detach().expand(missing, *rows.shape[1:])]) if missing and len(rows) else rows


def averaged(task: AnyTask, logits: Tensor) -> Tensor:
    """The base models' mean answer, (N, outputs), of their logits or values (N, base models, outputs)."""
    if isinstance(task, Regression):
        return logits.mean(dim=1)
    count = math.log(logits.shape[1])
    if isinstance(task, Multilabel):
        return torch.logsumexp(F.logsigmoid(logits), 1) - torch.logsumexp(F.logsigmoid(-logits), 1)
    return torch.logsumexp(logits.log_softmax(dim=2), dim=1) - count


def likely(task: AnyTask, logits: Tensor) -> Tensor:
    """Probabilities of logits (..., outputs), or values as they are."""
    if isinstance(task, Regression):
        return logits
    return torch.sigmoid(logits) if isinstance(task, Multilabel) else logits.softmax(dim=-1)
