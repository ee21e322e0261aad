"""Ways in which private training has been broken by others, each a change of one line of the real trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgraft.client.privacy.dp import dpsgd, secret
from fedgraft.client.privacy.dp import noise as noising
from fedgraft.client.privacy.dp.gradients import private_losses, trainer
from fedgraft.common.models.model import TransferModel
from fedgraft.common.study.tasks import AnyTask

Patch = pytest.MonkeyPatch
Tensors = Mapping[str, Tensor]


def no_clip(patch: Patch) -> None:
    patch.setattr(trainer, "clip_factors", lambda norms, max_grad_norm: torch.ones_like(norms))


def clip_of_the_mean(patch: Patch) -> None:
    def whole(gradients: Sequence[Tensor], max_grad_norm: float, of: int) -> list[Tensor]:
        means = [part.mean(dim=0) for part in gradients]
        norm = float(torch.cat([mean.flatten() for mean in means]).norm())
        factor = min(1.0, max_grad_norm / max(norm, 1e-12))
        return [mean * factor * len(gradients[0]) for mean in means]

    patch.setattr(trainer, "clip_and_sum", whole)


def every_image_clipped_alone(patch: Patch) -> None:
    patch.setattr(dpsgd, "units_of", lambda indices, patients, unit: [[case] for case in indices.tolist()])


def weighted_mean(patch: Patch) -> None:
    """The mean of a loss with class weights, over a batch: its weights' sum ties all cases together."""
    real = private_losses.losses_by_case

    def losses(outputs: Tensors, targets: Tensors, tasks: Mapping[str, AnyTask] | None = None) -> Tensor:
        (target,) = targets.values()
        weights = torch.tensor([1.0, 1.0, 100.0])[target]
        return real(outputs, targets, tasks) * weights * len(target) / weights.sum()

    patch.setattr(private_losses, "losses_by_case", losses)


def moving_statistics(patch: Patch) -> None:
    """Norm layers in train mode."""
    real = TransferModel.freeze

    def freeze(self: TransferModel, keys: Sequence[str], *, fixed_norm_stats: bool) -> None:
        real(self, keys, fixed_norm_stats=False)

    patch.setattr(TransferModel, "freeze", freeze)
    patch.setattr(dpsgd, "_refuse_moving_statistics", lambda model: None)


def noise_divided_again(patch: Patch) -> None:
    real = dpsgd.noisy_mean
    patch.setattr(
        dpsgd,
        "noisy_mean",
        lambda total, noises, expected: real(total, noising.Noises(noises.deviation / expected, 1), expected),
    )


def half_the_noise(patch: Patch) -> None:
    real = noising.steps_of_noise
    patch.setattr(noising, "steps_of_noise", lambda like, deviation: (piece / 2 for piece in real(like, deviation)))


def no_noise(patch: Patch) -> None:
    patch.setattr(noising, "steps_of_noise", lambda like, deviation: iter([like.new_zeros(like.numel()).double()]))


def bare_biases(patch: Patch) -> None:
    real = noising.steps_of_noise
    patch.setattr(
        noising,
        "steps_of_noise",
        lambda like, deviation: (piece * (like.ndim > 1) for piece in real(like, deviation)),
    )


def one_key(patch: Patch) -> None:
    patch.setattr(secret, "_key", lambda: bytes(32))


def seeded_noise(patch: Patch) -> None:
    def seeded(like: Tensor, deviation: float) -> Iterator[Tensor]:
        draw = torch.Generator().manual_seed(like.numel())
        drawn = torch.randn(like.numel(), generator=draw, dtype=torch.float64)
        yield drawn * (deviation / noising.granularity(deviation))

    patch.setattr(noising, "steps_of_noise", seeded)


def torch_noise(patch: Patch) -> None:
    """As in Opacus: whoever sets torch's seed knows the noise."""

    def drawn(like: Tensor, deviation: float) -> Iterator[Tensor]:
        yield torch.randn(like.numel(), dtype=torch.float64) * (deviation / noising.granularity(deviation))

    patch.setattr(noising, "steps_of_noise", drawn)
    patch.setattr(secret, "torch_seeded", nullcontext)  # else torch's streams are as secret as ours


def numpy_noise(patch: Patch) -> None:
    """As in Flower's own mechanisms."""

    def drawn(count: int, device: torch.device | None = None, deviation: float = 1.0) -> Iterator[Tensor]:
        yield torch.from_numpy(np.random.normal(size=count) * deviation)

    patch.setattr(secret, "normals", drawn)


def lots_of_one_size(patch: Patch) -> None:
    patch.setattr(
        dpsgd, "draw_units", lambda count, sample_rate: torch.randperm(count)[: round(count * sample_rate)].tolist()
    )


def one_always_comes(patch: Patch) -> None:
    real = dpsgd.draw_units
    patch.setattr(dpsgd, "draw_units", lambda count, sample_rate: sorted({0, *real(count, sample_rate)}))


def a_step_too_few(patch: Patch) -> None:
    real = dpsgd._terms
    patch.setattr(dpsgd, "_terms", lambda *args: (*real(*args)[:3], max(1, real(*args)[3] - 1)))
