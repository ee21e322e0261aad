"""How far a sum in single precision is from the one that was measured, without making the latter.

Each unit's norm is exact (`book_keeping`), but the sum over units and places is made in single precision. Entries can
be made so that what should cancel there leaves more than the clip: of one unit's own places, or of all others', which
then sum otherwise when one unit more is there. How far S is from the true sum of b_t a_t' shows in random directions r,
in double precision and without any product of b and a (Freivalds 1977, "Probabilistic machines can use less running
time"): |S r - sum_t b_t (a_t r)|^2 is |S - true|^2 on average. The directions are the site's secret, so that nobody can
make a sum that is wrong everywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedgraft.client.privacy.dp import secret
from fedgraft.client.privacy.dp.gradients.patches import patches

MOST_ERROR = 2.0**-7
"""What the sum of a step may be off by, in clips, by how it was made."""

_ALARM = MOST_ERROR / 16
"""Where a sum is made again. Sixteen directions see an error as if it were a third in one of 300 sums, an eighth in one
of two million (of convolutions; seldomer of others): in 16 million trials none as less than a 13th. Sums of trained
and of new models were off by 5.7e-8 for each unit at most, and looked as if by 1.2e-7."""
_DIRECTIONS = 16

_BOUND = 2.0**-9
"""What sums that nobody looks at are off by at most: adding up n numbers in single precision is off by n 2^-24 times
the sum of their sizes at most (Higham 2002, "Accuracy and stability of numerical algorithms", section 4.2)."""


def sum_of(factors: Tensor, gradients: Tensor, of: int) -> Tensor:
    """The sum over units of `factors` (units,) times `gradients` (units, ...), in the type of the latter.

    Blocks of units are summed in single precision, and these in double; they are the shorter, the more units the step
    is `of`, so that the whole step's sum is off by `_BOUND` clips at most.
    """
    block = max(1, int(_BOUND * 2**24 / of) - 1)
    factors = factors.to(gradients)
    if len(factors) <= block:
        return torch.einsum("n,n...->...", factors, gradients)
    total = gradients.new_zeros(gradients.shape[1:], dtype=torch.float64)
    for first in range(0, len(factors), block):
        own = slice(first, first + block)
        total += torch.einsum("n,n...->...", factors[own], gradients[own])
    return total.to(gradients.dtype)


def product_of(factors: Tensor, rows: Tensor, of: int) -> Tensor:
    """`factors` (outputs, units) times `rows` (units, numbers), off by twice that at most."""
    if len(rows) * of <= 2 * _BOUND * 2**24:
        return factors @ rows
    return (factors.double() @ rows.double()).to(rows.dtype)


def squared_error(
    layer: nn.Conv2d | nn.Linear, inputs: Tensor, came: Tensor, factors: Tensor, summed: Tensor
) -> Tensor:
    """An estimate of |S - true|^2, a number in float64, where `summed` is S, in the shape of the layer's weight.

    `inputs` (cases, ...) is what the layer saw, `came` (cases, groups, outputs of a group, places) what came back to
    it, `factors` (cases,) what each case's part counts.
    """
    groups = came.shape[1]
    weights = summed.reshape(groups, came.shape[2], -1)
    if isinstance(layer, nn.Linear):
        direction = _drawn(layer.in_features, summed)
        seen = inputs.double().reshape(len(inputs), came.shape[3], layer.in_features) @ direction
        seen, directions = seen[:, None], direction
    else:
        channels, kernel = layer.in_channels // groups, layer.kernel_size[0] * layer.kernel_size[1]
        # A product of two random directions, of channels and of a kernel's places: channels are summed first, so that
        # no patch of all channels is made.
        across, within = _drawn(channels, summed), _drawn(kernel, summed)
        directions = (across[:, None] * within).flatten(0, 1)
        pixels = inputs.double().reshape(len(inputs), groups, channels, -1)
        mixed = (across.T @ pixels).reshape(len(inputs), groups * _DIRECTIONS, *inputs.shape[2:])
        seen = torch.einsum("ngdkt,kd->ngtd", _places(layer, mixed, groups), within)
    true = (came.double() @ seen.mul_(factors.double().view(-1, 1, 1, 1))).sum(dim=0)
    # Twice as many numbers take four times as long, and what rounding adds here cannot hide what it knows nothing of.
    return (weights @ directions.to(weights) - true).square().sum() / _DIRECTIONS


def _drawn(numbers: int, like: Tensor) -> Tensor:
    return torch.randn((numbers, _DIRECTIONS), generator=secret.generator(), dtype=torch.float64).to(like.device)


def _places(layer: nn.Conv2d, mixed: Tensor, groups: int) -> Tensor:
    """Of mixed channels what each place sees, (cases, groups, directions, places of the kernel, places)."""
    seen = patches(layer, mixed, groups=groups * _DIRECTIONS)
    return seen.reshape(len(mixed), groups, _DIRECTIONS, -1, seen.shape[-1])


def are_true(squared_errors: Sequence[Tensor], clip: float, share: float) -> bool:
    """Whether sums over a `share` of a step's units seem to be off by little; not, if by no number."""
    return math.sqrt(sum(map(float, squared_errors))) <= _ALARM * clip * share
