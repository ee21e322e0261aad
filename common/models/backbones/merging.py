"""Low-rank adapters as plain entries: what A and B add to a layer's weight, put into it. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

A, B = "lora_a.weight", "lora_b.weight"
"""The names of an adapter's entries, below the name of its layer."""


def pairs(keys: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """Of every adapter among the `keys`: the names of its A, its B and of the weight that both add to."""
    for key in keys:
        if key.endswith(f".{A}"):
            layer = key.removesuffix(A)
            plain = f"{layer}weight"
            yield key, f"{layer}{B}", plain if plain in keys else f"{layer}in_proj_weight"


def merged(arrays: Mapping[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """A model's entries with W + scale B A in place of W, A and B; the sums are in float64."""
    plain = dict(arrays)
    for a, b, weight in pairs(arrays):
        first, last, old = (plain.pop(a), plain.pop(b), plain[weight])
        added = scale * product(first, last).reshape(old.shape)
        plain[weight] = (old.astype(np.float64) + added).astype(old.dtype)
    return plain


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """B A, (outputs, inputs of an output) in float64, of a layer's A (rank, ...) and B (outputs, rank, ...)."""
    rank = a.shape[0]
    return b.reshape(-1, rank).astype(np.float64) @ a.reshape(rank, -1).astype(np.float64)
