"""The noise of the Gaussian mechanism on sums over units: fresh, from the site's own secret, and on a grid.

A sum and its noise as they come, added in floating point, give the sum away: which last digits are possible depends on
it (Mironov 2012, "On significance of the least significant bits for differential privacy"). So both are brought to
multiples of a step g, a power of two, before they meet. With k = rint(x/g) and a normal N of deviation s,

    released = g (k + rint(N/g)) = g rint(k + N/g),

since k is whole: it is the real Gaussian mechanism on g k, rounded afterwards, which is post-processing, as is all that
becomes of it: halves, means, single precision. Whatever the sum, every multiple of g is possible, and nothing else.

Two things keep that equation honest. Rounding x moves each of d numbers by up to g/2, so that one unit changes g k by
up to C + g sqrt(d) where it changes x by C; the noise is that much larger (`widened`). And N is drawn in double
precision, off by some 2^-49 deviations, in the far tails by 2^-46; on a grid as fine as that its digits would again be
a fingerprint. A step of 2^-24 deviations leaves room between the two: the probability of each multiple is right to some
2^-23 of itself. Ten million numbers in a thousand steps add less than 1e-3 to a Renyi divergence of order 30 by that
(d T alpha 2^-46 / 2), and two in ten thousand to the noise by the widening, times the noise multiplier.

How x was made is another matter: for sums of gradients `trainer.CHANGE` takes the place of C (see `checked_sums`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.client.privacy.dp import secret
from fedgraft.common.base.errors import InputError

_FEW_NUMBERS = 1 << 16
"""Noise for so few numbers is drawn at once: for a head, starting the generator is most of the work."""

_FINE_BITS = 24
"""The grid's step is so many halvings of a deviation, or up to one more."""
_MOST_WIDENING = 0.5

_SINGLE = 2.0**64
"""Sums in single precision are brought to steps between this and its inverse as they are: 2^64 times as long as a step
is still a number there."""


def granularity(deviation: float) -> float:
    """The step of the grid on which sums with noise of this deviation lie: a power of two."""
    return math.ldexp(1.0, math.frexp(deviation)[1] - 1 - _FINE_BITS)


def widened(deviation: float, bound: float, numbers: int) -> float:
    """The deviation that has the same ratio to what one unit changes once `numbers` sums were brought to the grid.

    `bound` is what a unit changes them by before. With m = deviation / bound, the wider w is m (bound + g
    sqrt(numbers)) or more for every step g <= 2^-24 w. InputError where so many numbers have so much noise that there
    is no such w.
    """
    share = deviation / bound * math.sqrt(numbers) * 2.0**-_FINE_BITS
    if share > _MOST_WIDENING:
        raise InputError(
            f"Noise of {deviation / bound:g} times the bound on {numbers:,} numbers hides all they say.",
            fix="Train fewer entries, or on more patients.",
        )
    return deviation / (1 - share)


def noised(sums: NDArray[Any], deviation: float) -> NDArray[np.float64]:
    """Sums with noise of this deviation, which the caller has widened, all on the grid."""
    step = granularity(deviation)
    drawn = secret.normal(sums.size).reshape(sums.shape)
    drawn *= deviation / step
    np.rint(drawn, out=drawn)
    drawn += np.rint(sums / step)
    drawn *= step
    return drawn


class Noises:
    """The noise of a visit's steps. For few entries that of many steps is drawn at once; each is given once.

    `bound` is what one unit changes a sum by; as much as the deviation, if not given.
    """

    def __init__(self, deviation: float, steps: int, bound: float | None = None) -> None:
        self.deviation = deviation
        self._bound = deviation if bound is None else bound
        self._steps = steps
        self._ahead: list[Tensor] = []

    def deviation_of(self, numbers: int) -> float:
        """The deviation for a sum of so many numbers, with room for their being brought to the grid."""
        return widened(self.deviation, self._bound, numbers) if self.deviation > 0 else self.deviation

    def next(self, like: Tensor) -> Tensor:
        """That of the next step, for all entries in one row, (entries,) float64."""
        if not self._ahead:
            rows = max(1, min(self._steps, _FEW_NUMBERS // len(like)))
            self._ahead = list(noise(like.expand(rows, -1), self.deviation_of(len(like))).unbind())
            self._steps -= rows
        return self._ahead.pop()


def noisy_mean(total: Sequence[Tensor], noises: Noises, expected: float) -> list[Tensor]:
    """The noised sum over the expected number of units, a public constant, not over the number that came."""
    sizes = [part.numel() for part in total]
    deviation = noises.deviation_of(sum(sizes))
    few, on_cpu = sum(sizes) <= _FEW_NUMBERS, total[0].device.type == "cpu"
    if on_cpu and not few:
        return [_noisy_share(part, deviation, expected) for part in total]
    flat = torch.cat([part.flatten() for part in total])  # to start work on a device takes longer than a few numbers
    if few:
        flat = noises.next(flat).add_(_on_grid(flat, granularity(deviation))).div_(expected).to(total[0].dtype)
    else:
        flat = _noisy_share(flat, deviation, expected)
    return [own.view(part.shape) for own, part in zip(flat.split_with_sizes(sizes), total, strict=True)]


def noise(like: Tensor, deviation: float) -> Tensor:
    """Fresh Gaussian noise in the shape of `like`, float64, on the grid of its deviation."""
    drawn = torch.cat([piece.clone() for piece in steps_of_noise(like, deviation)])
    return drawn.mul_(granularity(deviation)).view(like.shape)


def steps_of_noise(like: Tensor, deviation: float) -> Iterator[Tensor]:
    """The same as whole numbers of the grid's steps, (numbers,) at a time, in the order of `like` as one row.

    Each piece is overwritten by the next.
    """
    for piece in secret.normals(like.numel(), like.device, deviation / granularity(deviation)):
        yield piece.round_()


def _noisy_share(sums: Tensor, deviation: float, expected: float) -> Tensor:
    """`sums` with noise, divided, in their own type: piece by piece, so that all is done in the processor's cache."""
    step, flat = granularity(deviation), sums.flatten()
    noisy, start = torch.empty_like(flat), 0
    for piece in steps_of_noise(sums, deviation):
        own = slice(start, start + len(piece))
        steps = _in_steps(flat[own], step, noisy[own])
        noisy[own] = piece.add_(steps).mul_(step / expected)
        start += len(piece)
    return noisy.view(sums.shape)


def _on_grid(values: Tensor, step: float) -> Tensor:
    """The nearest multiples of `step`, float64; exact, since the step is a power of two."""
    return _in_steps(values, step).double().mul_(step)


def _in_steps(values: Tensor, step: float, place: Tensor | None = None) -> Tensor:
    """The nearest whole numbers of steps; in `place`, if that is given and can hold them.

    Exact in single precision as well: a power of two only moves the exponent, and who falls below the smallest number
    has none anyway. Only where that power, or what a step is a part of, leaves the exponents that there are, doubles
    are needed.
    """
    if values.dtype != torch.float64 and not 1 / _SINGLE < step < _SINGLE:
        values, place = values.double(), None
    return torch.mul(values, 1 / step, out=place).round_()
