"""The one training loop of all gradient methods."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedgraft.client.training.batch_pairs import (
    learnt_from,
    look,
    pairs,
    parted,
)
from fedgraft.client.training.inner_steps import Ahead
from fedgraft.client.training.losses.base import Glance, Moment, Visit
from fedgraft.client.training.losses.objective import Objective
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.loader import Feed, shuffled
from fedgraft.client.training.model.local_model import Workbench
from fedgraft.client.training.rollback import guesses, holds
from fedgraft.common.base.seeds import derive
from fedgraft.common.protocol.rates import rate_factor, rate_of
from fedgraft.common.study.losses import sees_features
from fedgraft.common.study.plan import Gradient, Role


def train(bench: Workbench, feed: Feed, spec: Gradient, changes: Sequence[str], moment: Moment) -> dict[str, float]:
    """Take the optimiser steps of one visit in place; `changes` are the entries that may move.

    Returns the mean loss over the cases seen, the number of steps and of cases; with a `fallback` also whether the work
    was `undone`. Raises TooFewCases, Diverged.
    """
    if spec.fallback is None:
        return _trained(bench, feed, spec, changes, moment)
    start, before = bench.read(changes), guesses(bench, feed)
    figures = _trained(bench, feed, spec, changes, moment)
    good = holds(spec.fallback, before, guesses(bench, feed))
    if not good:
        bench.touched(changes)
        bench.load(start)
        bench.touched(changes)
    return figures | {"undone": float(not good)}


def _trained(bench: Workbench, feed: Feed, spec: Gradient, changes: Sequence[str], moment: Moment) -> dict[str, float]:
    """The steps of one visit, in the order asked for."""
    if spec.heads_first is None:
        return _train(bench, feed, spec, changes, moment)
    heads = [key for key in changes if _is_head(bench, key)]
    rest = [key for key in changes if not _is_head(bench, key)]
    alone = spec.model_copy(update={"steps": spec.heads_first, "epochs": None})
    first = _train(bench, feed, alone, heads, replace(moment, seed=derive(moment.seed, "heads")))
    then = _train(bench, feed, spec, rest, moment)
    return {**then, "steps": first["steps"] + then["steps"]}


def _train(bench: Workbench, feed: Feed, spec: Gradient, changes: Sequence[str], moment: Moment) -> dict[str, float]:
    """The same for entries that are all trained at once."""
    indices = learnt_from(feed, spec)
    groups = _groups(indices, spec, moment.seed)
    if not groups or (len(groups[0]) < 2 and trains_norm_statistics(bench, changes)):
        raise TooFewCases
    bench.model.freeze(changes, fixed_norm_stats=not trains_norm_statistics(bench, changes))
    if not bench.model.training:
        bench.model.train()
    optimiser = optimiser_for(bench, spec, changes)
    rates = [group["lr"] for group in optimiser.param_groups]
    ahead = Ahead(spec.lookahead, [bench.parameters[key] for key in changes if key in bench.parameters])
    weights = _class_weights(bench, feed, spec, indices)
    objective = Objective(Visit(bench, spec, changes, moment, weights))
    loss_sum, seen = torch.zeros((), device=bench.device), 0
    body, features = feed.body(bench.model), sees_features(spec.terms)
    with dropout_seeded(bench, derive(moment.seed, "dropout")):
        for step, pair in enumerate(pairs(feed, groups, spec, moment)):
            progress = (moment.round - 1 + step / len(groups)) / moment.rounds
            if spec.schedule != "constant" or spec.warmup:
                factor = rate_factor(spec, progress)
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
            losses = []
            for part in parted(pair[0], bench, weights):
                glance = Glance(*look(body, (part, pair[1]), features=features), progress)
                losses.append(_slope(objective, glance))
            objective.pull()
            loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
            if ahead.counts(step):
                ahead.back()
                _step(spec, optimiser)
            else:
                ahead.lead()
            loss_sum += loss * len(pair[0].indices)
            seen += len(pair[0].indices)
    mean = float(loss_sum) / seen
    if not math.isfinite(mean) or not bench.finite(changes):  # the last step can break what the loss has not yet seen
        raise Diverged
    return {"loss": mean, "steps": len(groups), "examples": len(indices)}


def _slope(objective: Objective, glance: Glance) -> Tensor:
    """Add the gradients of what is seen to those that the optimiser finds; the loss."""
    loss = objective.loss(glance)
    torch.autograd.backward(loss)
    return loss.detach()


def _step(spec: Gradient, optimiser: torch.optim.Optimizer) -> None:
    if spec.clip_norm is not None:
        nn.utils.clip_grad_norm_((p for g in optimiser.param_groups for p in g["params"]), spec.clip_norm)
    optimiser.step()


def _groups(indices: Tensor, spec: Gradient, seed: int) -> list[Tensor]:
    """Batches of one visit: whole epochs, or exactly `steps` of as many epochs as that takes."""
    if not len(indices):
        return []
    generator = torch.Generator().manual_seed(derive(seed, "batches"))
    if spec.epochs:
        return [group for _ in range(spec.epochs) for group in shuffled(indices, spec.batch_size, generator)]
    groups: list[Tensor] = []
    count = (spec.steps or 1) * (1 if spec.lookahead is None else 1 + spec.lookahead.steps)
    while len(groups) < count:
        groups += shuffled(indices, spec.batch_size, generator)
    return groups[:count]


def optimiser_for(bench: Workbench, spec: Gradient, changes: Sequence[str]) -> torch.optim.Optimizer:
    """The optimiser asked for, over the parameters among `changes`; heads and the rest have their own rates."""
    rates: dict[float, list[nn.Parameter]] = {}
    for key in sorted((key for key in changes if key in bench.parameters), key=lambda k: _is_head(bench, k)):
        rates.setdefault(rate_of(spec, bench.tags[key]), []).append(bench.parameters[key])
    groups = [{"params": params, "lr": rate} for rate, params in rates.items()]
    if spec.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    return torch.optim.AdamW(groups, lr=spec.lr, weight_decay=spec.weight_decay)


def _is_head(bench: Workbench, key: str) -> bool:
    return bench.tags[key].role in (Role.HEAD, Role.CRITIC)


def trains_norm_statistics(bench: Workbench, changes: Sequence[str]) -> bool:
    """Whether norm layers learn their statistics, so that a case's loss depends on the others in its batch."""
    return any(bench.tags[key].role is Role.NORM_STATS for key in changes)


def _class_weights(bench: Workbench, feed: Feed, spec: Gradient, indices: Tensor) -> dict[str, Tensor]:
    """Weights that make every class present at the site count the same; none unless asked for."""
    if spec.class_weights == "none":
        return {}
    weights = {}
    for task, classes in bench.model.classes.items():
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
