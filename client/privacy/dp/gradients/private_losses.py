"""What private work minimises, case by case: each case's loss depends on its own outputs and labels alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedgraft.client.privacy.dp.gradients import private_heads
from fedgraft.client.training.losses.plugged import Plugged
from fedgraft.client.training.model.loader import Batch
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.model.task_losses import losses_by_case
from fedgraft.common.models.ensemble import without_an_end
from fedgraft.common.study.stages.losses import Loss, PluggedLoss, Supervised

Outputs = Mapping[str, Tensor]

_ONE_THREADS = 1 << 15
"""Arrays of up to so many numbers are not shared among threads: at::internal::GRAIN_SIZE in torch."""


class PrivateLosses:
    """The weighted sum of a stage's losses that look at cases; what looks at entries alone comes after the noise."""

    def __init__(self, losses: Sequence[Loss], local_model: LocalModel) -> None:
        tasks = local_model.tasks
        parts: list[tuple[float, Callable[[Outputs, Outputs], Tensor]]] = []
        for loss in losses:
            if isinstance(loss, Supervised):
                parts.append((loss.weight, lambda outputs, targets: losses_by_case(outputs, targets, tasks)))
            elif isinstance(loss, PluggedLoss):
                parts.append((loss.weight, Plugged(loss, tasks, local_model.model.feature_dim).by_case))
        self._parts, self._tasks = parts, tasks
        self._is_supervised = not any(isinstance(loss, PluggedLoss) for loss in losses)

    def by_case(self, outputs: Outputs, targets: Outputs) -> Tensor:
        """Each case's loss, (N,)."""
        parts = [self._by_case(*part)[:count] for count, *part in _in_parts(outputs, targets)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _by_case(self, outputs: Outputs, targets: Outputs) -> Tensor:
        parts = [part(outputs, targets) for _, part in self._parts]
        weights = [weight for weight, _ in self._parts]
        if weights == [1]:
            return parts[0]
        weighted = [weight * part for weight, part in zip(weights, parts, strict=True)]
        return torch.stack(weighted).sum(dim=0)

    def slopes(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """By task the slope in each output, (outputs, N).

        In closed form for the supervised loss; of others a pass backwards through the loss alone.
        """
        if self._is_supervised:
            found = [self._slopes(*part, batch) for part in _in_parts(outputs, batch.targets)]
            return {task: torch.cat([own[task] for own in found], dim=1) for task in outputs}
        with torch.enable_grad():
            free = {task: value.detach().requires_grad_() for task, value in outputs.items()}
            losses = self.by_case(free, batch.targets)
            gradients = torch.autograd.grad(losses.sum(), list(free.values()), allow_unused=True)
        return {
            task: (torch.zeros_like(value) if slope is None else slope).T.contiguous()
            for (task, value), slope in zip(free.items(), gradients, strict=True)
        }

    def _slopes(self, count: int, outputs: Outputs, targets: Outputs, batch: Batch) -> dict[str, Tensor]:
        found = private_heads.errors(outputs, replace(batch, targets=targets), self._tasks)
        return {task: slope[:, :count] for task, slope in found.items()}


def _in_parts(outputs: Outputs, targets: Outputs) -> Iterator[tuple[int, Outputs, Outputs]]:
    """How many cases count in a part, of which one thread works out each, and the part without an end.

    Where a thread's share ends is an end as well. Where a case has so many numbers that 32 cases are too many for one
    thread, each case is a part: alone it always comes out alike.
    """
    count = len(next(iter(outputs.values())))
    numbers = max(own[0].numel() for own in outputs.values()) if count else 1
    size = _ONE_THREADS // (32 * numbers) * 32
    for start in range(0, max(count, 1), size or 1):
        here = slice(start, min(start + (size or 1), count))
        some, known = ({task: own[here] for task, own in whole.items()} for whole in (outputs, targets))
        if size:
            some, known = ({task: without_an_end(own) for task, own in part.items()} for part in (some, known))
        yield here.stop - start, some, known
