"""How far apart the outlines of two masks are, in mm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_SHARE = 95.0


def hausdorff_95(one: Mask, other: Mask, spacing_mm: float) -> float:
    """The 95th percentile of the distances from the pixels of one outline to the other, the larger of both ways, in mm.

    Huttenlocher et al. 1993, with the percentile in place of the maximum, as is usual for masks drawn by hand. Masks
    are (H, W) with square pixels of `spacing_mm`. NaN if either is empty, or the spacing is not known.
    """
    if not (one.any() and other.any() and spacing_mm > 0):
        return float("nan")
    outlines = [_outline(mask) for mask in (one, other)]
    from scipy import ndimage  # a study is checked without

    away = [ndimage.distance_transform_edt(~outline) for outline in outlines]
    ways = (away[1][outlines[0]], away[0][outlines[1]])
    return float(max(np.percentile(way, _SHARE) for way in ways) * spacing_mm)


def _outline(mask: Mask) -> Mask:
    """Pixels inside that have one outside above, below, left or right; the image's edge counts as outside."""
    from scipy import ndimage

    outline: Mask = mask & ~ndimage.binary_erosion(mask)
    return outline
