"""Norms that are never less than the true ones, from sums in single precision: double took a third of a step.

Each addition of a sum in single precision rounds, and squares below 2^-126 are lost. Both are bounded, whatever the
order of the sum, and the bound is added: who clips by what comes out of here clips by some millionths too much, and
never too little. (For the bounds: Higham 2002, "Accuracy and stability of numerical algorithms", section 3.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BLOCK = 128
"""So many squares are summed in single precision, and blocks in double."""
_FEW = 2048
"""Shorter rows are summed in double as they are; so are all on a GPU, which turns numbers into double as it reads."""
_ROUNDED = 1 + (_BLOCK / 2 + 4) * 2.0**-24
"""A sum of n positive numbers, each rounded, is short by a share of at most n 2^-24, and its root by half of that; the
rest is for the root's own rounding, and for products of these shares."""

_LOST = 2.0**-62
"""More than the root of twice 2^-126, which a number can lose by being too small."""


def at_least_norms(rows: Tensor) -> Tensor:
    """At least the norm of each row of (rows, numbers), (rows,) in float64; infinite where a square is too large."""
    count = rows.shape[1]
    if rows.dtype == torch.float64 or rows.device.type != "cpu" or count <= _FEW:
        exact: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        return exact
    whole = count - count % _BLOCK
    blocks = torch.linalg.vector_norm(rows[:, :whole].reshape(len(rows), whole // _BLOCK, _BLOCK), dim=2)
    norms: Tensor = torch.linalg.vector_norm(blocks, dim=1, dtype=torch.float64)
    if whole < count:
        norms = torch.hypot(norms, torch.linalg.vector_norm(rows[:, whole:], dim=1, dtype=torch.float64))
    return norms * _ROUNDED + math.sqrt(count) * _LOST
