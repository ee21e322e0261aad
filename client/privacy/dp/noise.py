"""The noise of the Gaussian mechanism on sums over units, fresh for every step, from the site's own secret."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedgraft.client.privacy.dp import secret

_FEW_NUMBERS = 1 << 16
"""Noise for so few numbers is drawn at once: for a head, starting the generator is most of the work."""


class Noises:
    """The noise of a visit's steps. For few entries that of many steps is drawn at once; each is given once."""

    def __init__(self, deviation: float, steps: int) -> None:
        self.deviation = deviation
        self._steps = steps
        self._ahead: list[Tensor] = []

    def next(self, like: Tensor) -> Tensor:
        """That of the next step, for all entries in one row, (entries,) float64."""
        if not self._ahead:
            rows = max(1, min(self._steps, _FEW_NUMBERS // len(like)))
            self._ahead = list(noise(like.expand(rows, -1), self.deviation).unbind())
            self._steps -= rows
        return self._ahead.pop()


def noisy_mean(total: Sequence[Tensor], noises: Noises, expected: float) -> list[Tensor]:
    """The noised sum over the expected number of units, a public constant, not over the number that came."""
    sizes = [part.numel() for part in total]
    if sum(sizes) <= _FEW_NUMBERS:
        flat = torch.cat([part.flatten() for part in total])
        flat = noises.next(flat).add_(flat).div_(expected).to(total[0].dtype)
        return [own.view(part.shape) for own, part in zip(flat.split_with_sizes(sizes), total, strict=True)]
    return [(part.double() + noise(part, noises.deviation)).div(expected).to(part.dtype) for part in total]


def noise(like: Tensor, deviation: float) -> Tensor:
    """Fresh Gaussian noise in the shape of `like`, float64."""
    drawn = torch.from_numpy(secret.normal(like.numel()) * deviation)
    return drawn.view(like.shape).to(like.device)
