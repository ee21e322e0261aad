"""Images of few different stored values: what each of them looks like is worked out once, and not for every pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MOST_LEVELS = 1 << 16
_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Shades:
    """A table (levels,) or (levels, 3) of what stored values look like, in [0, 1], and which of them each pixel is."""

    table: Floats
    entries: NDArray[Any]
    """Positions in the table, (H, W) or, where colours have one table, (H, W, 3); unsigned."""

    def image(self) -> Floats:
        """The image itself, (H, W) or (H, W, 3). IndexError if a pixel is outside the table."""
        if self.table.ndim > 1:
            return np.asarray(self.table.take(self.entries, axis=0))
        flat = self.entries.reshape(-1)
        if flat.size and int(flat.max()) >= len(self.table):
            raise IndexError
        found, at = np.empty(flat.size, self.table.dtype), np.empty(min(_AT_ONCE, flat.size), np.intp)
        for begin in range(0, flat.size, _AT_ONCE):  # so that 8 bytes for each pixel stay in the processor's cache
            piece = flat[begin : begin + _AT_ONCE]
            np.copyto(at[: len(piece)], piece)
            np.take(self.table, at[: len(piece)], out=found[begin : begin + len(piece)], mode="clip")
        return found.reshape(self.entries.shape)


Picture = Floats | Shades
"""An image, or what it is made from."""


@dataclass(frozen=True)
class Levels:
    """All integers from the least to the largest of an image's stored values, in their type, and its pixels' `entries`.

    The least and the largest are in the image; others need not be.
    """

    values: NDArray[Any]
    entries: NDArray[Any]

    def counts(self) -> NDArray[np.intp]:
        """How many pixels have each value."""
        return np.bincount(self.entries.reshape(-1), minlength=len(self.values))


def levels(stored: NDArray[Any]) -> Levels | None:
    """The levels of stored integers; None if there would be more of them than pixels, or too many for a table."""
    if stored.dtype.kind not in "iu" or not stored.size:
        return None
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    least, largest = int(stored.min()), int(stored.max())
    count = largest - least + 1
    if count > min(stored.size, MOST_LEVELS):
        return None
    unsigned = np.dtype(f"u{stored.dtype.itemsize}")
    entries = stored.view(unsigned)
    if least:  # the difference of signed numbers may be too large for their type, but not modulo its size
        entries = entries - unsigned.type(least % (1 << 8 * unsigned.itemsize))
    small = np.dtype(np.uint8 if count <= 1 << 8 else np.uint16)
    if small.itemsize < unsigned.itemsize:
        entries = entries.astype(small)
    return Levels(np.arange(least, largest + 1).astype(stored.dtype), entries)


def shades(stored: NDArray[Any], shown: Callable[[NDArray[Any]], Floats]) -> Picture:
    """What `shown` makes of stored values, each by itself, worked out once for each level where there are few."""
    found = levels(stored)
    return shown(stored) if found is None else Shades(shown(found.values), found.entries)


def image(picture: Picture) -> Floats:
    """The image that a picture is, or is made into."""
    return picture.image() if isinstance(picture, Shades) else picture
