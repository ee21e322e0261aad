"""Batches as the training loop sees them: of the site's own cases, beside one of a source where a loss asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat

import torch
from torch import Tensor

from fedgraft.client.training.augment import augmented
from fedgraft.client.training.device.autocast import half_precision
from fedgraft.client.training.device.compiled import Compiled
from fedgraft.client.training.losses.base import ForwardOutput, RoundContext
from fedgraft.client.training.model.errors import TooFewCases
from fedgraft.client.training.model.loader import Batch, Loader, shuffled
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.model.task_losses import label_mass, least_mass
from fedgraft.common.base.seeds import derive
from fedgraft.common.models.model import Heads, TransferModel
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.stages.losses import Requirement, requirements, wants_all_cases

Pair = tuple[Batch, Batch | None]
Body = TransferModel | Heads | Compiled


def learnt_from(loader: Loader, spec: Gradient) -> Tensor:
    """The training cases that a visit learns from: those with a label, or all of them if any loss needs none."""
    return loader.splits["train"] if wants_all_cases(spec.losses) else loader.labelled("train")


def pairs(loader: Loader, groups: Sequence[Tensor], spec: Gradient, round_context: RoundContext) -> Iterator[Pair]:
    """A batch per group of indices, changed at random if asked, each beside one of the source's labelled cases.

    Raises TooFewCases if the source has too few.
    """
    draw = None
    if spec.augment is not None:
        draw = torch.Generator().manual_seed(derive(round_context.seed, "augment"))
    others: Iterator[Batch | None] = repeat(None)
    if Requirement.SOURCE in requirements(spec.losses):
        source = round_context.visit_context.source
        assert source is not None
        others = source.batches(_drawn(source, len(groups), spec.batch_size, derive(round_context.seed, "source")))
    for target, other in zip(loader.batches(groups), others, strict=False):
        yield _changed(target, spec, draw), None if other is None else _changed(other, spec, draw)


def look(body: Body, pair: Pair, *, features: bool) -> tuple[ForwardOutput, ForwardOutput | None]:
    """What the model says of a pair, in one pass: norm layers then take their statistics from both domains together."""
    target, source = pair
    inputs = target.inputs if source is None else torch.cat([target.inputs, source.inputs])
    with half_precision(inputs.device):
        z, outputs = body.both(inputs) if features else (None, body(inputs))
    if source is None:
        return ForwardOutput(target, outputs, z), None
    n = len(target.inputs)
    own = ForwardOutput(target, {task: scores[:n] for task, scores in outputs.items()}, None if z is None else z[:n])
    other = ForwardOutput(source, {task: scores[n:] for task, scores in outputs.items()}, None if z is None else z[n:])
    return own, other


def parted(batch: Batch, local_model: LocalModel, weights: Mapping[str, Tensor]) -> list[Batch]:
    """A batch in as many parts as memory asks for, each with the share that it has in the mean of the whole."""
    parts, tasks = batch.parted(local_model.parts), local_model.tasks
    if len(parts) == 1:
        return parts
    bare = [{t: label_mass(task, part.targets[t], weights.get(t)) for t, task in tasks.items()} for part in parts]
    whole = {task: torch.stack([mass[task] for mass in bare]).sum() for task in tasks}
    least = {task: least_mass(weights.get(task)) for task in tasks}
    shares = [{t: mass[t].clamp(min=least[t]) / whole[t].clamp(min=least[t]) for t in tasks} for mass in bare]
    return [replace(part, share=share) for part, share in zip(parts, shares, strict=True)]


def _changed(batch: Batch, spec: Gradient, draw: torch.Generator | None) -> Batch:
    return batch if spec.augment is None or draw is None else augmented(batch, spec.augment, draw)


def _drawn(source: Loader, count: int, size: int, seed: int) -> list[Tensor]:
    """`count` batches of the source, epoch after epoch."""
    indices, generator = source.labelled("all"), torch.Generator().manual_seed(seed)
    if len(indices) < 2:
        raise TooFewCases
    groups: list[Tensor] = []
    while len(groups) < count:
        groups += shuffled(indices, size, generator)
    return groups[:count]
