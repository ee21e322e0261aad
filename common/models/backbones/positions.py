"""Position embeddings of vision transformers for another number of patches."""

from __future__ import annotations

import math

import numpy as np

_NAMES = ("pos_embed", "pos_embedding")


def other_grid(key: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether both are shapes (1, tokens, width) of position embeddings, of square grids of patches of other sizes."""
    if not key.endswith(_NAMES) or len(given) != 3 or len(wanted) != 3 or given[::2] != wanted[::2]:
        return False
    before, after = (tokens - math.isqrt(tokens) ** 2 for tokens in (given[1], wanted[1]))
    return before == after and given[1] != wanted[1]


def resample(embedding: np.ndarray, tokens: int) -> np.ndarray:
    """(1, tokens before, width) to (1, `tokens`, width): patches bicubic with anti-aliasing, other tokens as they are.

    As timm does it: torch's `interpolate` with `mode="bicubic"` and `antialias=True`.
    """
    old, new = math.isqrt(embedding.shape[1]), math.isqrt(tokens)
    first = embedding.shape[1] - old * old
    grid = embedding[0, first:].astype(np.float64).reshape(old, old, -1)
    weights = _weights(old, new)
    moved = np.einsum("ai,bj,ijw->abw", weights, weights, grid).reshape(1, new * new, -1)
    return np.concatenate([embedding[:, :first], moved.astype(embedding.dtype)], axis=1)


def _weights(old: int, new: int) -> np.ndarray:
    """How much each of `old` places counts for each of `new` ones, (new, old)."""
    scale = old / new
    wide = max(scale, 1.0)
    distance = np.abs((np.arange(old) + 0.5)[None] - (scale * (np.arange(new) + 0.5))[:, None]) / wide
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    kernel = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))
