"""The one training loop of all gradient methods."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.local.augment import augmented
from client.local.feed import Batch, Feed, shuffled
from client.local.losses import label_mass, least_mass, task_loss
from client.workbench import Workbench
from common.plan import Gradient, Role
from common.seeds import derive
from common.tasks import AnyTask, Task


class TooFewCases(Exception):
    """There are not enough labelled cases for a step."""


class Diverged(Exception):
    """The loss, or a trained entry, is no longer a finite number."""


@dataclass(frozen=True)
class Moment:
    """Where in a plan a visit happens: `seed` is its own, `round` of `rounds` counts from 1."""

    seed: int
    round: int
    rounds: int


def train(bench: Workbench, feed: Feed, spec: Gradient, changes: Sequence[str], moment: Moment) -> dict[str, float]:
    """Take the optimiser steps of one visit in place; `changes` are the entries that may move.

    Returns the mean loss over the cases seen, the number of steps and of labelled cases. Raises TooFewCases, Diverged.
    """
    indices = feed.labelled("train")
    groups = _groups(indices, spec, moment.seed)
    if not groups or (len(groups[0]) < 2 and trains_norm_statistics(bench, changes)):
        raise TooFewCases
    bench.model.freeze(changes, fixed_norm_stats=not trains_norm_statistics(bench, changes))
    bench.model.train()
    optimiser = optimiser_for(bench, spec, changes)
    rates = [group["lr"] for group in optimiser.param_groups]
    weights = _class_weights(bench, feed, spec, indices)
    draw = torch.Generator().manual_seed(derive(moment.seed, "augment"))
    loss_sum, seen = torch.zeros((), device=bench.device), 0
    body = feed.body(bench.model)
    with dropout_seeded(bench, derive(moment.seed, "dropout")):
        for step, batch in enumerate(feed.batches(groups)):
            if spec.schedule != "constant" or spec.warmup:
                factor = rate_factor(spec, (moment.round - 1 + step / len(groups)) / moment.rounds)
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            if spec.augment is not None:
                batch = augmented(batch, spec.augment, draw)  # noqa: PLW2901
            loss = _step(body, spec, optimiser, batch.parted(bench.parts), weights, bench.tasks)
            loss_sum += loss * len(batch.indices)
            seen += len(batch.indices)
    bench.model.eval()
    mean = float(loss_sum) / seen
    if not math.isfinite(mean) or not bench.finite(changes):  # the last step can break what the loss has not yet seen
        raise Diverged
    return {"loss": mean, "steps": len(groups), "examples": len(indices)}


def rate_factor(spec: Gradient, progress: float) -> float:
    """Factor on the learning rate when `progress` (0 to 1) of the stage is done: linear warm-up, then the schedule."""
    if progress < spec.warmup:
        return progress / spec.warmup
    if spec.schedule == "constant":
        return 1.0
    left = (progress - spec.warmup) / (1 - spec.warmup)
    return 0.5 * (1 + math.cos(math.pi * left))


def supervised(
    outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    known: Collection[str] = (),
    tasks: Mapping[str, AnyTask] | None = None,
) -> Tensor:
    """Sum over tasks of their losses, each the mean over the batch's known labels; 0 for a task without any.

    In tasks named `known` no label is missing. A task that is not among `tasks` asks for classes.
    """
    asked = tasks or {}
    losses = [
        task_loss(asked.get(task), answers, targets[task], weights.get(task), complete=task in known)
        for task, answers in outputs.items()
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _step(
    body: nn.Module,
    spec: Gradient,
    optimiser: torch.optim.Optimizer,
    parts: Sequence[Batch],
    weights: dict[str, Tensor],
    tasks: Mapping[str, AnyTask],
) -> Tensor:
    """One step on a batch that comes in parts; the gradients of the parts' shares add up to that of the whole."""
    optimiser.zero_grad(set_to_none=True)
    losses = []
    for part, share in zip(parts, _shares(parts, weights, tasks), strict=True):
        with torch.autocast("cuda", torch.bfloat16, enabled=part.inputs.device.type == "cuda"):
            outputs = body(part.inputs)
        if share is None:
            loss = supervised(outputs, part.targets, weights, part.known, tasks)
        else:
            each = [task_loss(tasks[t], o, part.targets[t], weights.get(t)) for t, o in outputs.items()]
            loss = torch.stack([one * share[task] for task, one in zip(outputs, each, strict=True)]).sum()
        torch.autograd.backward(loss)
        losses.append(loss.detach())
    if spec.clip_norm is not None:
        nn.utils.clip_grad_norm_((p for g in optimiser.param_groups for p in g["params"]), spec.clip_norm)
    optimiser.step()
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _shares(
    parts: Sequence[Batch], weights: dict[str, Tensor], tasks: Mapping[str, AnyTask]
) -> Sequence[dict[str, Tensor] | None]:
    """By task how much of a batch's labels each part has; None for a batch in one part."""
    if len(parts) == 1:
        return [None]
    bare = [{t: label_mass(task, part.targets[t], weights.get(t)) for t, task in tasks.items()} for part in parts]
    whole = {task: torch.stack([mass[task] for mass in bare]).sum() for task in tasks}
    least = {task: least_mass(weights.get(task)) for task in tasks}
    return [{t: mass[t].clamp(min=least[t]) / whole[t].clamp(min=least[t]) for t in tasks} for mass in bare]


def _groups(indices: Tensor, spec: Gradient, seed: int) -> list[Tensor]:
    """Batches of one visit: whole epochs, or exactly `steps` of as many epochs as that takes."""
    if not len(indices):
        return []
    generator = torch.Generator().manual_seed(derive(seed, "batches"))
    if spec.epochs:
        return [group for _ in range(spec.epochs) for group in shuffled(indices, spec.batch_size, generator)]
    groups: list[Tensor] = []
    while len(groups) < (spec.steps or 1):
        groups += shuffled(indices, spec.batch_size, generator)
    return groups[: spec.steps]


def optimiser_for(bench: Workbench, spec: Gradient, changes: Sequence[str]) -> torch.optim.Optimizer:
    """The optimiser asked for, over the parameters among `changes`; heads and the rest have their own rates."""
    named = bench.parameters
    heads = [named[key] for key in changes if key in named and bench.tags[key].role is Role.HEAD]
    rest = [named[key] for key in changes if key in named and bench.tags[key].role is not Role.HEAD]
    groups = [
        {"params": params, "lr": rate}
        for params, rate in ((rest, spec.lr * spec.backbone_lr_factor), (heads, spec.lr))
        if params
    ]
    if spec.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    return torch.optim.AdamW(groups, lr=spec.lr, weight_decay=spec.weight_decay)


def trains_norm_statistics(bench: Workbench, changes: Sequence[str]) -> bool:
    """Whether norm layers learn their statistics, so that a case's loss depends on the others in its batch."""
    return any(bench.tags[key].role is Role.NORM_STATS for key in changes)


def _class_weights(bench: Workbench, feed: Feed, spec: Gradient, indices: Tensor) -> dict[str, Tensor]:
    """Weights that make every class present at the site count the same; none unless asked for, and for classes."""
    if spec.class_weights == "none":
        return {}
    weights = {}
    asked = [task for task in bench.tasks.values() if isinstance(task, Task)]
    for task, classes in ((task.name, len(task.classes)) for task in asked):
        known = feed.targets(task, indices)
        counts = torch.bincount(known[known >= 0], minlength=classes).float()
        share = torch.where(counts > 0, counts.sum() / (counts.clamp(min=1) * (counts > 0).sum()), 0)
        weights[task] = share.to(bench.device)
    return weights


@contextlib.contextmanager
def dropout_seeded(bench: Workbench, seed: int) -> Iterator[None]:
    """Dropout knows only torch's global stream: lend it a seeded one, and give the old one back."""
    if not bench.model.needs_dropout_rng:
        yield
        return
    devices = [bench.device] if bench.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
