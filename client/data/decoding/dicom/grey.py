"""A grey DICOM image as a screen shows it, in [0, 1], white high.

In this order: the stored bits, modality LUT or rescale (PS3.3 C.11.1), VOI LUT or window (C.11.2), polarity. Padding
becomes 0. The presentation LUT shape of an X-ray only repeats its photometric interpretation and is not read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from fedgraft.client.data.decoding.dicom.lookup import read_table
from fedgraft.client.data.decoding.dicom.numbers import UNREADABLE_ELEMENT, first, single
from fedgraft.client.data.decoding.dicom.windows import Straight, on_screen, window_table, windowed
from fedgraft.client.data.decoding.shades import Floats, Levels, Picture, Shades, levels
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.spec import Window

WINDOW_WIDTH_1 = "window_width_1"

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_PERCENTILES = (0.5, 99.5)
"""Shown from black to white where a file has no window: robust against hot pixels and markers."""


def grey(dataset: Dataset, stored: NDArray[Any], index: int, window: Window | None, notes: Counter[str]) -> Picture:
    """One frame (H, W) in [0, 1] from its stored values; a `window` of the site's own replaces what the file says.

    What is odd is counted in `notes`. UnusableError if an element that decides about values cannot be read.
    """
    if (found := levels(stored)) is None:
        return _shown(dataset, stored, index, window, notes)
    return Shades(_shown(dataset, found.values, index, window, notes, found), found.entries)


def _shown(
    dataset: Dataset,
    stored: NDArray[Any],
    index: int,
    window: Window | None,
    notes: Counter[str],
    found: Levels | None = None,
) -> Floats:
    """Stored values as they are shown: those of all pixels, or each level `found` in the image once."""
    padding = _padding(dataset, stored)
    if padding is not None and padding.all():  # of levels too: padding is a range, and both ends are in the image
        return np.zeros(stored.shape, dtype=np.float32)
    if found is not None and (line := _line(dataset, index, window)) is not None:
        known = window_table(line).of(found)
        return known if padding is None else np.where(padding, np.float32(0), known)
    values = _modality(dataset, stored, index)
    seen = _Seen(values, padding, found)
    window = window or _narrow(dataset, seen, index, notes)
    shown = _voi(dataset, values, seen, index, window)
    return on_screen(shown, padding, inverted=_inverted(dataset))


def _inverted(dataset: Dataset) -> bool:
    return str(dataset.PhotometricInterpretation) == "MONOCHROME1"


def _line(dataset: Dataset, index: int, window: Window | None) -> Straight | None:
    """What decides about a frame, if that is a window and no table, percentile or curve."""
    if _modality_lut(dataset) is not None or (window is None and voi_lut(dataset) is not None):
        return None
    stated = (window.center, window.width, _FUNCTIONS[0]) if window else stated_window(dataset, index)
    # A width of 1 may be meant otherwise (see `_narrow`), and an exponential need not be the same in another place.
    if stated is None or stated[1] == 1 or stated[2] == "SIGMOID":
        return None
    slope, intercept = _rescale(dataset, index)
    return Straight(slope, intercept, *stated, _inverted(dataset))


@dataclass(frozen=True)
class _Seen:
    """Values after the modality transformation, where there is padding, and whether they are levels or pixels."""

    values: NDArray[np.float64]
    padding: NDArray[np.bool_] | None
    levels: Levels | None

    def finite(self) -> tuple[NDArray[np.float64], NDArray[np.intp] | None]:
        """Finite values that are in the image and no padding, and how often; None where each stands for a pixel."""
        there = np.isfinite(self.values)
        if self.padding is not None:
            there &= ~self.padding
        if self.levels is None:
            return self.values[there], None
        counts = self.levels.counts()
        there &= counts > 0
        return self.values[there], counts[there]


def stored_bits(dataset: Dataset, cells: NDArray[Any]) -> NDArray[Any]:
    """The bits of a pixel cell that are the pixel's, with their sign: overlays may lie above or below them."""
    if cells.dtype.kind not in "iu":
        return cells
    bits, allocated = int(dataset.BitsStored), 8 * cells.dtype.itemsize
    low = int(dataset.get("HighBit", bits - 1)) + 1 - bits
    if low < 0 or low + bits > allocated:
        low = 0
    if bits < 1 or bits >= allocated:
        return cells
    native = cells.astype(cells.dtype.newbyteorder("="), copy=False)
    if low == 0 and cells.size:  # mostly nothing is there but the pixel
        ends = (-(1 << bits - 1), (1 << bits - 1) - 1) if cells.dtype.kind == "i" else (0, (1 << bits) - 1)
        if ends[0] <= native.min() and native.max() <= ends[1]:
            return native
    # The first shift drops what lies above, the second what lies below; it keeps the sign of signed types.
    return np.asarray((native << (allocated - low - bits)) >> (allocated - bits))


def functional_group(dataset: Dataset, index: int, name: str) -> Dataset | None:
    """The group `name` of one frame of an enhanced image: its own, else the one that all frames share."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    groups = [per_frame[index]] if per_frame and index < len(per_frame) else []
    shared = dataset.get("SharedFunctionalGroupsSequence")
    for group in [*groups, *(shared or ())]:
        if inner := group.get(name):
            item: Dataset = inner[0]
            return item
    return None


def _padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where there is no image: stored values equal to, or in the range of, the padding value."""
    floating = stored.dtype.kind == "f"
    kind = ("DoubleFloat" if stored.dtype.itemsize == 8 else "Float") if floating else ""
    low, last = first(dataset, f"{kind}PixelPaddingValue"), first(dataset, f"{kind}PixelPaddingRangeLimit")
    if low is None:
        return None
    ends = (low, low if last is None else last)
    if not floating:
        bits, signed = int(dataset.BitsStored), stored.dtype.kind == "i"
        ends = (_as_pixel(ends[0], bits, signed=signed), _as_pixel(ends[1], bits, signed=signed))
    mask = np.asarray((stored >= min(ends)) & (stored <= max(ends)))
    return mask if mask.any() else None


def _as_pixel(value: float, bits: int, *, signed: bool) -> int:
    """A padding value as a pixel holds it: files give it with the other sign, or with bits above the stored ones."""
    cell = int(value) & ((1 << bits) - 1)
    return cell - (1 << bits) if signed and cell >> (bits - 1) else cell


def _modality(dataset: Dataset, stored: NDArray[Any], index: int) -> NDArray[np.float64]:
    if (lut := _modality_lut(dataset)) is not None:
        table = read_table(lut.get("LUTDescriptor"), lut.LUTData, little=_little(dataset))
        return table(stored, signed=stored.dtype.kind == "i")
    slope, intercept = _rescale(dataset, index)
    return stored.astype(np.float64) * slope + intercept


def _rescale(dataset: Dataset, index: int) -> tuple[float, float]:
    source = functional_group(dataset, index, "PixelValueTransformationSequence") or dataset
    slope, intercept = single(source, "RescaleSlope"), single(source, "RescaleIntercept")
    # A slope of 0 would erase the image; it is what some files write for "none".
    return slope or 1.0, intercept or 0.0


def _below_zero(dataset: Dataset, index: int) -> bool:
    """Whether values after the modality transformation may be negative, whatever is in this image."""
    if _modality_lut(dataset) is not None:
        return False
    if "PixelData" not in dataset:
        return True  # floating point
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation") or 0) == 1
    ends = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    slope, intercept = _rescale(dataset, index)
    return min(end * slope + intercept for end in ends) < 0


def _voi(
    dataset: Dataset, values: NDArray[np.float64], seen: _Seen, index: int, window: Window | None
) -> NDArray[np.float64]:
    """To [0, 1] by the site's window, else the file's VOI LUT, else its first window, else robust percentiles."""
    if window is not None:
        return windowed(values, window.center, window.width, "LINEAR")
    if (lut := voi_lut(dataset)) is not None:
        table = read_table(lut.get("LUTDescriptor"), lut.LUTData, little=_little(dataset))
        return np.clip(table(values, signed=_below_zero(dataset, index)) / (2.0**table.bits - 1), 0, 1)
    if (stated := stated_window(dataset, index)) is not None:
        return windowed(values, *stated)
    return stretched(values, *seen.finite())


def voi_lut(dataset: Dataset) -> Dataset | None:
    """The first VOI look-up table of a file, if it has one."""
    return _filled(dataset, "VOILUTSequence")


def _modality_lut(dataset: Dataset) -> Dataset | None:
    return _filled(dataset, "ModalityLUTSequence")


def _filled(dataset: Dataset, name: str) -> Dataset | None:
    """The first item of a sequence of look-up tables that has entries: without any it is no table."""
    return next((item for item in dataset.get(name) or () if item.get("LUTData") not in (None, b"", "")), None)


def stated_window(dataset: Dataset, index: int) -> tuple[float, float, str] | None:
    """Center, width and function of a frame's first window, if the file states a usable one."""
    source = functional_group(dataset, index, "FrameVOILUTSequence") or dataset
    center, width = first(source, "WindowCenter"), first(source, "WindowWidth")
    if center is None or width is None or width <= 0:
        return None
    return center, width, _function(source)


def _function(source: Dataset) -> str:
    """How the first window is meant. UnusableError for what the standard does not know: another would be a guess."""
    value = source.get("VOILUTFunction") or ""
    name = str(value if isinstance(value, str) else next(iter(value), "")).strip("\0 ").upper() or _FUNCTIONS[0]
    if name not in _FUNCTIONS:
        raise UnusableError(UNREADABLE_ELEMENT)
    return name


def _narrow(dataset: Dataset, seen: _Seen, index: int, notes: Counter[str]) -> Window | None:
    """In place of a window of width 1 on values from 0 to 1, which would leave black and white: all of them."""
    stated = stated_window(dataset, index) if voi_lut(dataset) is None else None
    if stated is None or stated[1] != 1 or stated[2] != "LINEAR":
        return None
    finite, _ = seen.finite()
    if not finite.size or finite.min() < 0 or finite.max() > 1 or not (finite % 1).any():
        return None
    notes[WINDOW_WIDTH_1] += 1
    # LINEAR takes 1 off the width and a half off the center.
    return Window(center=stated[0] + 0.5, width=2)


def stretched(
    values: NDArray[np.float64], finite: NDArray[np.float64], counts: NDArray[np.intp] | None = None
) -> NDArray[np.float64]:
    """The percentiles of what is `finite` and seen become black and white; an image of one value is black.

    `counts` says how often each of the finite values is there; without it each is there once.
    """
    if not finite.size:
        return np.zeros_like(values)
    if counts is None:
        low, high = np.percentile(finite, _PERCENTILES)
    else:
        low, high = percentiles(finite, counts)
    if high <= low:
        low, high = finite.min(), finite.max()
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def percentiles(values: NDArray[np.float64], counts: NDArray[np.intp]) -> tuple[float, float]:
    """As `np.percentile` of all the values, each repeated as often as it counts, to the last bit."""
    order = np.argsort(values, kind="stable")
    ordered, until = values[order], np.cumsum(counts[order])
    found = []
    for percentile in _PERCENTILES:
        at = (int(until[-1]) - 1) * (percentile / 100)
        below = int(at)
        low, high = ordered[np.searchsorted(until, [below, min(below + 1, int(until[-1]) - 1)], side="right")]
        share, gap = at - below, high - low
        found.append(high - gap * (1 - share) if share >= 0.5 else low + gap * share)
    return found[0], found[1]


def _little(dataset: Dataset) -> bool:
    return bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)
