"""DP-SGD over patients or images.

Abadi et al. 2016, "Deep learning with differential privacy", with add/remove neighbours and Poisson sampling:

    g = (sum over sampled units u of clip(mean over images of grad loss(u)) + sigma C z) / (q E),   z ~ N(0, I)

C is the clip, and a little more for what one unit changes by rounding (`trainer.CHANGE`, and the grid of `noise`).
E is a public number of units, fixed beforehand: divided by the true N, the spread of the noise would tell N exactly.
What the optimiser makes of g is post-processing. Privacy spent depends on sigma, q and the number of steps alone, which
all are fixed before the first step. Nothing here uses the study's seed: the coordinator knows it. That goes for dropout
and augmentation as well, since with draws that others know, a patient left out shifts those of all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedgraft.client.privacy.dp import secret
from fedgraft.client.privacy.dp.gradients.trainer import CHANGE, Trainer, attached
from fedgraft.client.privacy.dp.noise import Noises, noisy_mean
from fedgraft.client.privacy.dp.private_microbatching import PrivateMicrobatches
from fedgraft.client.privacy.dp.units import (
    Lots,
    Rows,
    draw_units,
    only,
    units_of,
)
from fedgraft.client.training.augment import augment
from fedgraft.client.training.device.alike import SPARE, Sizes, filled
from fedgraft.client.training.gradient import optimiser_for
from fedgraft.client.training.losses.base import RoundContext, Visit
from fedgraft.client.training.losses.objective import Objective
from fedgraft.client.training.model.errors import Diverged
from fedgraft.client.training.model.loader import Batch, Loader
from fedgraft.client.training.model.local_model import LocalModel, leave_gradient
from fedgraft.common.base.errors import InputError
from fedgraft.common.methods.memory.method import Method
from fedgraft.common.protocol.rates import rate_factor
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.stages.losses import Loss, LossScope, PluggedLoss, Supervised
from fedgraft.common.study.stages.training import Private

_FEATURES_AT_ONCE = 1024
"""Features need so little memory that a step is seldom cut in pieces."""
_FEW_GROUPS = 4
"""Sums of so few groups are added up in single precision: each addition is off by 2^-24 of the sum at most."""


def train_private(
    local_model: LocalModel,
    loader: Loader,
    patients: Sequence[str],
    spec: Gradient,
    changes: Sequence[str],
    round_context: RoundContext,
) -> dict[str, float]:
    """Take exactly `spec.steps` noised steps in place; `changes` are the parameters that may move.

    `patients` names the patient of every case of the cohort. Losses that look at the model's entries alone say nothing
    of any patient beyond what noised steps have made of these: their gradients are added after the noise. The figures
    returned are public: no loss, no counts. A site without any case gives noise, as one with few nearly does. Raises
    Diverged, which is read off the noised entries, and InputError for what is not private.
    """
    private, noise_multiplier, expected, steps = _terms(local_model, spec, changes)
    objective = Objective(Visit(local_model, spec, changes, round_context, loader))
    units = units_of(loader.labelled("train"), patients, private.unit)
    most = private.max_grad_norm * CHANGE
    lots, noises = Lots(units, single=private.unit == "image"), Noises(noise_multiplier * most, steps, most)
    local_model.model.freeze(changes, fixed_norm_stats=True)
    local_model.model.train()
    _refuse_moving_statistics(local_model.model)
    optimiser = optimiser_for(local_model, spec, changes)
    rates = [group["lr"] for group in optimiser.param_groups]
    draw = secret.generator()
    # As many as a step has on average would do for half of the steps, and the others had two half-empty passes.
    at_once = max(spec.batch_size, _FEATURES_AT_ONCE) if loader.seen else spec.batch_size * 5 // 4
    at_once = min(at_once, _seldom_more(private.sample_rate * expected * private.augmentation_multiplicity))
    parameters = [local_model.parameters[key] for key in changes]
    groups = PrivateMicrobatches(partial(attached, local_model, loader, changes, private, spec.losses), at_once)
    with full_precision(), groups, secret.torch_seeded():
        for step in range(steps):
            drawn = draw_units(len(units), private.sample_rate)
            rows = lots.rows(drawn, private.augmentation_multiplicity, augmented=spec.augment is not None)
            total = groups.sum_of(partial(_step_sum, loader, rows, spec, draw))
            noisy = noisy_mean(total, noises, private.sample_rate * expected)
            for parameter, gradient in zip(parameters, noisy, strict=True):
                leave_gradient(parameter, gradient.to(parameter.dtype))
            objective.add_regularisers()
            if spec.schedule != "constant" or spec.warmup:
                factor = rate_factor(spec, (round_context.round - 1 + step / steps) / round_context.rounds)
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    local_model.model.eval()
    if not local_model.finite(changes):
        raise Diverged
    return {"steps": steps, "noise_multiplier": noise_multiplier, "sample_rate": private.sample_rate}


@contextmanager
def full_precision() -> Iterator[None]:
    """Sums of products in single precision and no less, and the same ones every time.

    A GPU may round what it multiplies to ten bits (TF32). A sum of such products is not that of the gradients that were
    measured: where these nearly cancel, it can be longer than the clip. And it may choose an algorithm by how fast each
    was just now, or add in the order in which parts are ready.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32, convolutions.benchmark, convolutions.deterministic
    convolutions.allow_tf32 = products.allow_tf32 = convolutions.benchmark = False
    convolutions.deterministic = True
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32, convolutions.benchmark, convolutions.deterministic = before


def _seldom_more(mean: float) -> int:
    """As many cases as a step seldom has: larger passes would only be filled up."""
    return math.ceil(mean + 4 * math.sqrt(mean) + 4)


def _step_sum(
    loader: Loader, rows: Rows, spec: Gradient, draw: torch.Generator, trainer: Trainer, size: int
) -> list[Tensor]:
    groups = list(rows.chunks((size + SPARE,) if trainer.sizes == (1,) else trainer.sizes))
    batches = _batches(loader, groups, trainer.sizes, spec, draw)
    return clipped_sum(trainer, batches, torch.float64 if len(groups) > _FEW_GROUPS else None)


def clipped_sum(
    trainer: Trainer, batches: Iterator[tuple[Batch, Rows]], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Sum over units of their clipped gradients, one tensor per parameter; zeros if there are no units.

    In double precision, if `dtype` says so: the sum of many groups would be rounded by too much.
    """
    total: list[Tensor] | None = None
    for batch, rows in batches:
        part = trainer.sum_of(batch, rows)
        if total is None:
            total = [own.to(dtype or own.dtype) for own in part]
        else:
            for own, more in zip(total, part, strict=True):
                own.add_(more)
    return [torch.zeros_like(parameter) for parameter in trainer.parameters] if total is None else total


def _batches(
    loader: Loader, groups: Sequence[Rows], sizes: Sizes, spec: Gradient, draw: torch.Generator
) -> Iterator[tuple[Batch, Rows]]:
    """Batches filled up to whole passes, without images that are not finite.

    One such pixel would spoil the sum, and thereby tell of itself.
    """
    whole = [filled(group.indices, sizes) for group in groups]
    for read, rows in zip(loader.batches(whole), groups, strict=True):
        batch = read
        if spec.augment is not None:
            batch = replace(batch, inputs=augment(batch.inputs, spec.augment, draw))
        if not (loader.gaps or loader.sound):
            finite = batch.inputs[: len(rows.indices)].isfinite().flatten(1).all(dim=1).nonzero()[:, 0]
            batch, rows = only(batch, rows, finite)  # noqa: PLW2901
        if len(rows.indices):
            yield batch, rows


def _terms(local_model: LocalModel, spec: Gradient, changes: Sequence[str]) -> tuple[Private, float, int, int]:
    """What was asked for, once more: the last place where work that is not private can be stopped."""
    private = spec.private
    if private is None or spec.steps is None:
        raise InputError("Private work needs its terms and a number of steps.")
    noise_multiplier = private.noise_multiplier
    if noise_multiplier is None or not (
        noise_multiplier > 0 and private.max_grad_norm > 0 and 0 < private.sample_rate <= 1
    ):
        raise InputError("Private work needs noise, a bound, and a share of the units to sample.")
    if spec.class_weights != "none" or any((spec.clip_norm, spec.heads_first, spec.inner_steps, spec.rollback)):
        raise InputError("Class weights, clipped batches, steps of two kinds and a way back are not for private work.")
    if local_model.model.decodes:
        raise InputError("Gradients of single cases through a decoder of masks are not built.")
    if any(method.not_private for method in spec.methods if isinstance(method, Method)):
        raise InputError("A method of the stage is not for private work.")
    if not all(_is_of_one_case(loss) for loss in spec.losses if loss.scope is not LossScope.REGULARISER):
        raise InputError("Private work learns from the site's own labels, by losses of one case at a time.")
    if not changes or not set(changes) <= set(local_model.parameters):
        raise InputError("Private work trains parameters; running statistics are not noised and must stay.")
    if private.expected_units is None:
        raise InputError("Private work needs a public number of units to divide by.")
    return private, noise_multiplier, private.expected_units, spec.steps


def _is_of_one_case(loss: Loss) -> bool:
    return loss == Supervised() or (isinstance(loss, PluggedLoss) and loss.private)


def _refuse_moving_statistics(model: nn.Module) -> None:
    if any(isinstance(part, _NormBase) and part.training for part in model.modules()):
        raise InputError("A norm layer that takes its statistics from the batch ties patients together.")
