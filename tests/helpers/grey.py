"""Images and a few lines that say what a reader should make of them."""

from __future__ import annotations

import numpy as np

RNG = np.random.default_rng(0)
CT = RNG.integers(-1024, 2000, (12, 10)).astype(np.int16)
BYTES = np.arange(120, dtype=np.uint8).reshape(12, 10) * 2
CLOSE = 2e-6


def linear(values, center, width):
    """PS3.3 C.11.2.1.2.1 as it is printed."""
    values = np.asarray(values, dtype=np.float64)
    y = (values - (center - 0.5)) / (width - 1) + 0.5
    return np.where(
        values <= center - 0.5 - (width - 1) / 2, 0, np.where(values > center - 0.5 + (width - 1) / 2, 1, y)
    )


def stretched(values, among=None):
    low, high = np.percentile(values if among is None else among, (0.5, 99.5))
    return np.clip((values - low) / (high - low), 0, 1)


def same(found, wanted, atol=CLOSE):
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=0)
