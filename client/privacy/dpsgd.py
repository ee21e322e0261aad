"""DP-SGD over patients or images: the only file that knows Opacus.

Abadi et al. 2016, "Deep learning with differential privacy", with add/remove neighbours and Poisson sampling:

    g = (sum over sampled units u of clip(mean over views of grad loss(u)) + sigma C z) / (q N),   z ~ N(0, I)

What the optimiser makes of g is post-processing. Privacy spent depends on sigma, q and the number of steps alone, which
all are fixed before the first step. Nothing here uses the study's seed: the coordinator knows it. That goes for dropout
and augmentation as well, since with draws that others know, a patient left out shifts those of all others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from client.local.augment import augment
from client.local.feed import Batch, Feed
from client.local.gradient import dropout_seeded, optimiser_for
from client.local.losses import losses_by_case
from client.local.trouble import Diverged, TooFewCases
from client.privacy import heads, secret
from client.privacy.groups import Groups
from client.privacy.layers import NORM_SAMPLERS, SAMPLERS
from client.privacy.noising import Noises, noisy_mean
from client.privacy.units import Lots, Rows, draw_units, only, units_of
from client.terms.base import Moment, Visit
from client.terms.objective import Objective
from client.workbench import Workbench
from common.dp_safe import LAYERS, dp_twin
from common.errors import InputError
from common.model import Heads
from common.plan import Gradient
from common.rates import rate_factor
from common.tasks import AnyTask
from common.terms import Coupling, Supervised
from common.training import Private

_FEATURES_AT_ONCE = 1024
"""Features need so little memory that a step is seldom cut in pieces."""


@dataclass(frozen=True)
class Trainer:
    """What per-unit gradients need: the model as hooks see it, the parameters that move, and the hooks."""

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    hooks: Any
    private: Private
    lengths: Tensor | None = None
    """Of heads alone: the norms of all cases' features."""
    places: Sequence[tuple[str, int]] = ()
    """Of heads alone: the task of each parameter, and 0 for its weight or 1 for its bias."""
    tasks: Mapping[str, AnyTask] | None = None
    """What is asked; without it, classes."""

    def sum_of(self, batch: Batch, rows: Rows) -> list[Tensor]:
        """The sum over units of their clipped gradients, in the cheapest way there is."""
        if isinstance(self.model, Heads):
            return _on_features(self, self.model, batch, rows)
        return (_ghost if self.private.mode == "ghost" else _kept)(self, batch, rows)


def train_private(
    bench: Workbench, feed: Feed, patients: Sequence[str], spec: Gradient, changes: Sequence[str], moment: Moment
) -> dict[str, float]:
    """Take exactly `spec.steps` noised steps in place; `changes` are the parameters that may move.

    `patients` names the patient of every case of the cohort. Terms that look at the model's entries alone say nothing
    of any patient beyond what noised steps have made of these: their gradients are added after the noise. The figures
    returned are public: no loss, no counts. Raises TooFewCases, Diverged, and InputError for what is not private.
    """
    private, sigma, steps = _terms(bench, spec, changes)
    objective = Objective(Visit(bench, spec, changes, moment))
    units = units_of(feed.labelled("train"), patients, private.unit)
    if not units:
        raise TooFewCases
    lots, noises = Lots(units), Noises(sigma * private.clip, steps)
    bench.model.freeze(changes, fixed_norm_stats=True)
    bench.model.train()
    _refuse_moving_statistics(bench.model)
    optimiser = optimiser_for(bench, spec, changes)
    rates = [group["lr"] for group in optimiser.param_groups]
    draw = torch.Generator().manual_seed(secret.seed())
    at_once = max(spec.batch_size, _FEATURES_AT_ONCE) if feed.seen else spec.batch_size
    groups = Groups(partial(attached, bench, feed, changes, private), at_once)
    with groups, dropout_seeded(bench, secret.seed()):
        for step in range(steps):
            drawn = draw_units(len(units), private.sample)
            rows = lots.rows(drawn, private.views, augmented=spec.augment is not None)
            total = groups.sum_of(partial(_step_sum, feed, rows, spec, draw))
            noisy = noisy_mean(total, noises, private.sample * len(units))
            for parameter, gradient in zip(groups.trainer.parameters, noisy, strict=True):
                parameter.grad = gradient
            objective.pull()
            if spec.schedule != "constant" or spec.warmup:
                factor = rate_factor(spec, (moment.round - 1 + step / steps) / moment.rounds)
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    bench.model.eval()
    if not bench.finite(changes):
        raise Diverged
    return {"steps": steps, "sigma": sigma, "sample": private.sample}


def _step_sum(
    feed: Feed, rows: Rows, spec: Gradient, draw: torch.Generator, trainer: Trainer, size: int
) -> list[Tensor]:
    return clipped_sum(trainer, _batches(feed, list(rows.chunks(size)), spec, draw))


def clipped_sum(trainer: Trainer, batches: Iterator[tuple[Batch, Rows]]) -> list[Tensor]:
    """Sum over units of their clipped gradients, one tensor per parameter; zeros if there are no units."""
    total: list[Tensor] | None = None
    for batch, rows in batches:
        part = trainer.sum_of(batch, rows)
        if total is None:
            total = part
        else:
            torch._foreach_add_(total, part)
    return [torch.zeros_like(parameter) for parameter in trainer.parameters] if total is None else total


def clip_factors(norms: Tensor, clip: float) -> Tensor:
    """What brings each norm down to `clip`; 0 for a norm that is infinite or no number."""
    return (clip / norms).clamp_(max=1.0).nan_to_num_(nan=0.0)


def clip_and_sum(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
    """Per-unit gradients, (units, ...) per parameter, each unit clipped over all parameters together, then summed."""
    each = [torch.linalg.vector_norm(part.flatten(1), dim=1, dtype=torch.float64) for part in gradients]
    norms = torch.stack(each).norm(dim=0)
    factors = clip_factors(norms, clip)
    if not bool(norms.isfinite().all()):  # 0 times infinity is not 0, so a unit that overflowed is emptied first
        for part in gradients:
            part[~norms.isfinite()] = 0
    return [torch.einsum("n,n...->...", factors.to(part.dtype), part) for part in gradients]


def _kept(trainer: Trainer, batch: Batch, rows: Rows) -> list[Tensor]:
    """The clipped sum from all cases' gradients at once: memory is cases times parameters."""
    loss = losses_by_case(trainer.model(batch.inputs), batch.targets, trainer.tasks)
    if (share := rows.share()) is not None:
        loss = loss * share.to(loss.device)
    torch.autograd.backward(loss.sum())
    by_case = [_taken(parameter, "grad_sample") for parameter in trainer.parameters]
    for parameter in trainer.parameters:
        parameter.grad = None
    return clip_and_sum([rows.by_unit(part) for part in by_case], trainer.private.clip)


def _on_features(trainer: Trainer, model: Heads, batch: Batch, rows: Rows) -> list[Tensor]:
    """The clipped sum for heads alone, in closed form."""
    z, share = batch.inputs, rows.share()
    assert trainer.lengths is not None
    with torch.no_grad():
        errors = heads.errors(model(z), batch, None if share is None else share.to(z), trainer.tasks)
        if share is None:
            norms = heads.norms(errors, trainer.lengths.index_select(0, batch.indices.to(z.device)))
            factors = clip_factors(norms, trainer.private.clip).to(z)
            kept = {task: error.mul_(factors).nan_to_num_() for task, error in errors.items()}
            sums = heads.gradients(kept, z)
            return [sums[task][at] for task, at in trainer.places]
        each = heads.by_case(errors, z)
        return clip_and_sum([rows.by_unit(each[task][at]) for task, at in trainer.places], trainer.private.clip)


def _ghost(trainer: Trainer, batch: Batch, rows: Rows) -> list[Tensor]:
    """The clipped sum in two passes, the first for the norms: memory is that of one layer's gradients."""
    loss = losses_by_case(trainer.model(batch.inputs), batch.targets, trainer.tasks)
    torch.autograd.backward(loss.sum(), retain_graph=True)
    norms = torch.stack([_taken(parameter, "_norm_sample") for parameter in trainer.parameters]).double().norm(dim=0)
    for parameter in trainer.parameters:
        parameter.grad = None
    sound = norms.isfinite()
    if not bool(sound.all()):
        places = sound.nonzero()[:, 0]
        rest = only(batch, rows, places)
        return _ghost(trainer, *rest) if len(places) else [torch.zeros_like(p) for p in trainer.parameters]
    factors = clip_factors(norms, trainer.private.clip).to(loss.dtype)
    trainer.hooks.disable_hooks()
    parts = torch.autograd.grad((loss * factors).sum(), list(trainer.parameters))
    trainer.hooks.enable_hooks()
    return list(parts)


def _batches(feed: Feed, groups: Sequence[Rows], spec: Gradient, draw: torch.Generator) -> Iterator[tuple[Batch, Rows]]:
    """Batches without images that are not finite: one such pixel would spoil the sum, and thereby tell of itself."""
    for read, rows in zip(feed.batches([group.indices for group in groups]), groups, strict=True):
        batch = read
        if not (feed.gaps or feed.sound):
            finite = batch.inputs.isfinite().flatten(1).all(dim=1).nonzero()[:, 0]
            batch, rows = only(batch, rows, finite)  # noqa: PLW2901
        if not len(batch.indices):
            continue
        if spec.augment is not None:
            batch = replace(batch, inputs=augment(batch.inputs, spec.augment, draw))
        yield batch, rows


def _terms(bench: Workbench, spec: Gradient, changes: Sequence[str]) -> tuple[Private, float, int]:
    """What was asked for, once more: the last place where work that is not private can be stopped."""
    private = spec.private
    if private is None or spec.steps is None:
        raise InputError("Private work needs its terms and a number of steps.")
    sigma = private.sigma
    if sigma is None or not (sigma > 0 and private.clip > 0 and 0 < private.sample <= 1):
        raise InputError("Private work needs noise, a bound, and a share of the units to sample.")
    if spec.class_weights != "none" or any((spec.clip_norm, spec.heads_first, spec.lookahead, spec.fallback)):
        raise InputError("Class weights, clipped batches, steps of two kinds and a way back are not for private work.")
    if bench.model.decodes:
        raise InputError("Gradients of single cases through a decoder of masks are not built.")
    if private.mode == "ghost" and private.views > 1:
        raise InputError("Ghost clipping knows single images only.")
    if any(term.coupling is not Coupling.NONE and term != Supervised() for term in spec.terms):
        raise InputError("Private work learns from the site's own labels, and from no other term that looks at cases.")
    if not changes or not set(changes) <= set(bench.parameters):
        raise InputError("Private work trains parameters; running statistics are not noised and must stay.")
    return private, sigma, spec.steps


def _refuse_moving_statistics(model: nn.Module) -> None:
    if any(isinstance(part, _NormBase) and part.training for part in model.modules()):
        raise InputError("A norm layer that takes its statistics from the batch ties patients together.")


@contextmanager
def attached(bench: Workbench, feed: Feed, changes: Sequence[str], private: Private) -> Iterator[Trainer]:
    """The model with hooks for per-case gradients, and without any trace of them afterwards."""
    parameters = [bench.parameters[key] for key in changes]
    if feed.seen:
        places = [(bench.tags[key].task or "", int(key.endswith(".bias"))) for key in changes]
        yield Trainer(feed.body(bench.model), parameters, None, private, feed.lengths(), places, bench.tasks)
        return
    model = dp_twin(bench.model, changes)
    hooks: Any = (_GhostHooks if private.mode == "ghost" else _KeptHooks)(model, loss_reduction="sum", strict=False)
    try:
        with warnings.catch_warnings():
            # The first layer's hook has no gradient of its input to show, and needs none.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield Trainer(model, parameters, hooks, private, tasks=bench.tasks)
    finally:
        hooks.cleanup()
        for part in model.modules():  # what a pass that failed has left
            for left in ("activations", "max_batch_len"):
                part.__dict__.pop(left, None)
        for parameter in bench.parameters.values():
            parameter.grad = None


def _taken(parameter: nn.Parameter, name: str) -> Tensor:
    value = getattr(parameter, name)
    assert isinstance(value, Tensor)
    setattr(parameter, name, None)
    return value


class _AlsoInEval:
    """Opacus looks away from layers in eval; ours are there because their statistics are fixed, and may still learn."""

    GRAD_SAMPLERS: ClassVar[dict[type[nn.Module], Any]] = {
        **{layer: sampler for layer, sampler in GradSampleHooks.GRAD_SAMPLERS.items() if layer in LAYERS},
        **SAMPLERS,
    }

    def capture_activations_hook(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        was, module.training = module.training, True
        super().capture_activations_hook(module, inputs, output)  # type: ignore[misc]  # a mixin's parent is Opacus's
        module.training = was


class _KeptHooks(_AlsoInEval, GradSampleHooks):  # type: ignore[misc]  # Opacus has no types
    pass


class _GhostHooks(_AlsoInEval, GradSampleHooksFastGradientClipping):  # type: ignore[misc]  # Opacus has no types
    NORM_SAMPLERS: ClassVar[dict[type[nn.Module], Any]] = (
        GradSampleHooksFastGradientClipping.NORM_SAMPLERS | NORM_SAMPLERS
    )
