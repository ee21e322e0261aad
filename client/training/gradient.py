"""The one training loop of all gradient methods."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedgraft.client.training.batch_pairs import (
    Body,
    learnt_from,
    look,
    pairs,
    parted,
)
from fedgraft.client.training.inner_steps import Ahead
from fedgraft.client.training.losses.base import RoundContext, StepContext, Visit
from fedgraft.client.training.losses.objective import Objective
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.loader import Batch, Loader, shuffled
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.model.plain_adamw import PlainAdamW
from fedgraft.client.training.model.plain_sgd import PlainSgd
from fedgraft.client.training.rollback import guesses, holds
from fedgraft.common.base.seeds import derive
from fedgraft.common.protocol.rates import rate_factor, rate_of
from fedgraft.common.study.plan import Gradient, Role


def train(
    local_model: LocalModel, loader: Loader, spec: Gradient, changes: Sequence[str], round_context: RoundContext
) -> dict[str, float]:
    """Take the optimiser steps of one visit in place; `changes` are the entries that may move.

    Returns the mean loss over the cases seen, the number of steps and of cases; with a `rollback` also whether the work
    was `undone`. Raises TooFewCases, Diverged.
    """
    if spec.rollback is None:
        return _trained(local_model, loader, spec, changes, round_context)
    start, before = local_model.read(changes), guesses(local_model, loader)
    figures = _trained(local_model, loader, spec, changes, round_context)
    good = holds(spec.rollback, before, guesses(local_model, loader))
    if not good:
        local_model.touched(changes)
        local_model.load(start)
        local_model.touched(changes)
    return figures | {"undone": float(not good)}


def _trained(
    local_model: LocalModel, loader: Loader, spec: Gradient, changes: Sequence[str], round_context: RoundContext
) -> dict[str, float]:
    """The steps of one visit, in the order asked for."""
    if spec.heads_first is None:
        return _train(local_model, loader, spec, changes, round_context)
    heads = [key for key in changes if _is_head(local_model, key)]
    rest = [key for key in changes if not _is_head(local_model, key)]
    alone = spec.model_copy(update={"steps": spec.heads_first, "epochs": None})
    first = _train(local_model, loader, alone, heads, replace(round_context, seed=derive(round_context.seed, "heads")))
    then = _train(local_model, loader, spec, rest, round_context)
    return {**then, "steps": first["steps"] + then["steps"]}


def _train(
    local_model: LocalModel, loader: Loader, spec: Gradient, changes: Sequence[str], round_context: RoundContext
) -> dict[str, float]:
    """The same for entries that are all trained at once."""
    indices = learnt_from(loader, spec)
    groups = _groups(indices, spec, round_context.seed)
    if not groups or (len(groups[0]) < 2 and trains_norm_statistics(local_model, changes)):
        raise TooFewCases
    local_model.model.freeze(changes, fixed_norm_stats=not trains_norm_statistics(local_model, changes))
    if not local_model.model.training:
        local_model.model.train()
    optimiser = _quick_optimiser(local_model, spec, changes)
    rates = [group["lr"] for group in optimiser.param_groups]
    ahead = Ahead(spec.inner_steps, [local_model.parameters[key] for key in changes if key in local_model.parameters])
    weights = _class_weights(local_model, loader, spec, indices)
    objective = Objective(Visit(local_model, spec, changes, round_context, loader, weights))
    loss_sum, seen = torch.zeros((), device=local_model.device), 0
    body = local_model.compiled if local_model.compiled and not loader.seen else loader.body(local_model.model)
    with dropout_seeded(local_model, partial(torch.manual_seed, derive(round_context.seed, "dropout"))):
        for step, pair in enumerate(pairs(loader, groups, spec, round_context)):
            counted = step // ahead.length / (len(groups) // ahead.length)
            progress = (round_context.round - 1 + counted) / round_context.rounds
            if spec.schedule != "constant" or spec.warmup:
                factor = rate_factor(spec, progress)
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            optimiser.zero_grad()
            parts = parted(pair[0], local_model, weights)
            one_pass = partial(_pass, objective, body, parts, pair[1], progress)
            loss = objective.leave_gradients(one_pass, progress)
            if ahead.counts(step):
                ahead.back()
                _step(spec, optimiser)
            else:
                ahead.lead()
            cases = pair[0].indices.shape[0]
            loss_sum += loss * cases
            seen += cases
    mean = float(loss_sum) / seen
    if not math.isfinite(mean) or not local_model.finite(
        changes
    ):  # the last step can break what the loss has not yet seen
        raise Diverged
    objective.finish()
    return {"loss": mean, "steps": len(groups), "examples": indices.shape[0]}


def _pass(objective: Objective, body: Body, parts: Sequence[Batch], source: Batch | None, progress: float) -> Tensor:
    """Add the gradients of a step's cases to those that the optimiser finds; the loss."""
    losses = []
    for part in parts:
        loss = objective.loss(StepContext(*look(body, (part, source), features=objective.sees_features), progress))
        torch.autograd.backward(loss)
        losses.append(loss.detach())
    objective.add_regularisers()
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _step(spec: Gradient, optimiser: torch.optim.Optimizer | PlainAdamW | PlainSgd) -> None:
    if spec.clip_norm is not None:
        nn.utils.clip_grad_norm_((p for g in optimiser.param_groups for p in g["params"]), spec.clip_norm)
    optimiser.step()


def _groups(indices: Tensor, spec: Gradient, seed: int) -> list[Tensor]:
    """Batches of one visit: whole epochs, or exactly `steps` of as many epochs as that takes."""
    if not indices.shape[0]:
        return []
    generator = torch.Generator().manual_seed(derive(seed, "batches"))
    if spec.epochs:
        return [group for _ in range(spec.epochs) for group in shuffled(indices, spec.batch_size, generator)]
    groups: list[Tensor] = []
    count = (spec.steps or 1) * (1 if spec.inner_steps is None else 1 + spec.inner_steps.steps)
    while len(groups) < count:
        groups += shuffled(indices, spec.batch_size, generator)
    return groups[:count]


def optimiser_for(local_model: LocalModel, spec: Gradient, changes: Sequence[str]) -> torch.optim.Optimizer:
    """The optimiser asked for, over the parameters among `changes`; heads and the rest have their own rates."""
    groups = _rates(local_model, spec, changes)
    fused = True if local_model.device.type == "cuda" else None  # one kernel for all entries in place of many
    if spec.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=fused)
    return torch.optim.AdamW(groups, lr=spec.lr, weight_decay=spec.weight_decay, fused=fused)


def _quick_optimiser(
    local_model: LocalModel, spec: Gradient, changes: Sequence[str]
) -> torch.optim.Optimizer | PlainAdamW | PlainSgd:
    """The same, with less around each step where that makes no difference to any bit."""
    if spec.optimiser == "sgd" and local_model.device.type == "cpu":
        known = _KNOWN_RATES.get(local_model)
        if known is None or known[0] is not spec or known[1] != changes:
            rates = _rates(local_model, spec, changes)
            bare = [group | {"bare": [one.detach() for one in group["params"]]} for group in rates]
            known = _KNOWN_RATES[local_model] = spec, tuple(changes), bare
        return PlainSgd([dict(group) for group in known[2]], spec.momentum, spec.weight_decay)
    if spec.optimiser == "adamw" and local_model.device.type == "cpu":
        return PlainAdamW(_rates(local_model, spec, changes), spec.weight_decay)
    return optimiser_for(local_model, spec, changes)


_KNOWN_RATES: WeakKeyDictionary[LocalModel, tuple[Gradient, Sequence[str], list[dict[str, Any]]]] = WeakKeyDictionary()
"""By model what was asked for last, and its parameters by rate: the same for all sites of a round."""


def _rates(local_model: LocalModel, spec: Gradient, changes: Sequence[str]) -> list[dict[str, Any]]:
    """The parameters among `changes` by their rate of learning, those of heads last."""
    rates: dict[float, list[nn.Parameter]] = {}
    for key in sorted(
        (key for key in changes if key in local_model.parameters), key=lambda k: _is_head(local_model, k)
    ):
        rates.setdefault(rate_of(spec, local_model.tags[key]), []).append(local_model.parameters[key])
    return [{"params": params, "lr": rate} for rate, params in rates.items()]


def _is_head(local_model: LocalModel, key: str) -> bool:
    return local_model.tags[key].role in (Role.HEAD, Role.DOMAIN_DISCRIMINATOR)


def trains_norm_statistics(local_model: LocalModel, changes: Sequence[str]) -> bool:
    """Whether norm layers learn their statistics, so that a case's loss depends on the others in its batch."""
    return any(local_model.tags[key].role is Role.NORM_STATS for key in changes)


def _class_weights(local_model: LocalModel, loader: Loader, spec: Gradient, indices: Tensor) -> dict[str, Tensor]:
    """Weights that make every class present at the site count the same; none unless asked for."""
    if spec.class_weights == "none":
        return {}
    weights = {}
    for task, classes in local_model.model.classes.items():
        known = loader.targets(task, indices)
        counts = torch.bincount(known[known >= 0], minlength=classes).float()
        share = torch.where(counts > 0, counts.sum() / (counts.clamp(min=1) * (counts > 0).sum()), 0)
        weights[task] = share.to(local_model.device)
    return weights


@contextlib.contextmanager
def dropout_seeded(local_model: LocalModel, seed: Callable[[], object]) -> Iterator[None]:
    """Dropout knows only torch's global streams: let `seed` say where these begin, and give the old ones back."""
    if not local_model.model.needs_dropout_rng:
        yield
        return
    devices = [local_model.device] if local_model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed()
        yield
