"""How sums travel: of a symmetric matrix one half, with its diagonal, and with fewer digits where a stage says so."""

from __future__ import annotations

import numpy as np

from fedgraft.common.protocol.instructions import NOISE, Arrays

GRAM, PACKED = "/gram", "/triangle"
"""How the names of whole matrices end, and those of halves."""


def packed(sums: Arrays, kind: str = "float64") -> dict[str, np.ndarray]:
    """The sums as they leave a site: each `TASK/gram` (..., n, n) as `TASK/triangle` (..., n (n + 1) / 2), row by row.

    What is below the diagonal goes, with it. Its last number is the matrix's. All are of the type `kind` but `NOISE`.
    """
    sent = {}
    for key, array in sums.items():
        if key.endswith(GRAM):
            rows, columns = np.tril_indices(array.shape[-1])
            sent[key.removesuffix(GRAM) + PACKED] = array[..., rows, columns].astype(kind)
        else:
            sent[key] = array if key == NOISE else array.astype(kind)
    return sent


def unpacked(sent: Arrays) -> dict[str, np.ndarray]:
    """The sums that `folded` was given, in float64."""
    sums = {}
    for key, array in sent.items():
        whole = array.astype(np.float64)
        if key.endswith(PACKED):
            side = (int(np.sqrt(8 * array.shape[-1] + 1)) - 1) // 2
            rows, columns = np.tril_indices(side)
            whole = np.empty((*array.shape[:-1], side, side))
            whole[..., rows, columns] = whole[..., columns, rows] = array
            sums[key.removesuffix(PACKED) + GRAM] = whole
        else:
            sums[key] = whole
    return sums


def cells(side: int) -> int:
    """How many numbers one half of a `side` x `side` matrix holds, with its diagonal."""
    return side * (side + 1) // 2
