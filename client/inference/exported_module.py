"""A finished model with all that is around it, as one module: from plain inputs to probabilities."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.client.inference.model import LoadedModel
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.tasks import AnyTask, Regression, Task

_EPS = 1e-6


class AnsweringModule(nn.Module):
    """Images (N, channels, size, size) from 0 to 1, or a table's rows, to one tensor for each task.

    Probabilities of classes, labels and pixels; values in their unit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, reader: LoadedModel) -> None:
        super().__init__()
        self.network = copy.deepcopy(reader.local_model.model).to("cpu").requires_grad_(requires_grad=False)
        self._tasks = (*reader.tasks, *reader.others)
        given = reader.input
        self._zscore = isinstance(given, ImageInput) and given.normalise == "zscore"
        fixed = isinstance(given, ImageInput) and not self._zscore
        mean, std = (given.mean, given.std) if fixed and isinstance(given, ImageInput) else ((0.0,), (1.0,))
        self._fixed = fixed
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """What the model says of each case."""
        if self._zscore:
            deviation, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True, correction=0)
            x = (x - mean) / (deviation + _EPS)
        elif self._fixed:
            x = (x - self.mean) / self.std
        said = self.network(x)
        return {task.name: self._plain(task, said[task.name]) for task in self._tasks}

    @staticmethod
    def _plain(task: AnyTask, logits: Tensor) -> Tensor:
        if isinstance(task, Task):
            return torch.softmax(logits, dim=1)
        if isinstance(task, Regression):
            return logits[:, 0] * task.std + task.mean
        return torch.sigmoid(logits)


class WithGeometry(nn.Module):
    """Images of any size, (N, 1 or 3, H, W) from 0 to 1 with square pixels, to answers by task; fit for TorchScript.

    `inner` takes them at the model's size, as `Answers` does; without `given` it takes a table's rows as they are.
    """

    def __init__(self, inner: nn.Module, given: ImageInput | None) -> None:
        super().__init__()
        self.inner = inner
        self.size = given.size if given is not None else 0
        self.channels = given.channels if given is not None else 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Answers by task."""
        if self.size > 0:
            x = self.fitted(x)
        answers: dict[str, Tensor] = self.inner(x)
        return answers

    def fitted(self, x: Tensor) -> Tensor:
        """As a cohort's images are brought to the model's size."""
        if x.shape[1] == 3 and self.channels == 1:
            x = 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]
        elif x.shape[1] == 1 and self.channels == 3:
            x = x.expand(-1, 3, -1, -1)
        scale = self.size / float(max(x.shape[2], x.shape[3]))
        height = max(1, int(round(x.shape[2] * scale)))  # noqa: RUF046 - TorchScript's round gives a float
        width = max(1, int(round(x.shape[3] * scale)))  # noqa: RUF046
        if height != x.shape[2] or width != x.shape[3]:
            x = F.interpolate(x, [height, width], mode="bilinear", antialias=True, align_corners=False)
        down, across = self.size - height, self.size - width
        padding = [across // 2, across - across // 2, down // 2, down - down // 2]
        return F.pad(x, padding).clamp(0.0, 1.0)
