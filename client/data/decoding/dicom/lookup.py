"""Look-up tables in DICOM: modality, VOI and colour palettes (PS3.3 C.11.1.1, C.11.2.1.1, C.7.6.3.1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from fedgraft.client.data.decoding.unusable import UnusableError

_COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True)
class LookupTable:
    """`entries` for input values from `first` on, each of so many `bits`."""

    first: int
    bits: int
    entries: NDArray[np.float64]

    def __call__(self, values: NDArray[Any], *, signed: bool) -> NDArray[np.float64]:
        """Entries at the rounded values; below and above the table stand its first and last entries.

        The first input value has the sign of the values (`signed`: they may be negative), but many files write it, or
        are read, with the other one.
        """
        first, count = self.first, len(self.entries)
        if signed and first >= 32768:
            first -= 65536
        elif not signed and first + count <= 0:
            first += 65536
        index = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
        return np.asarray(self.entries[index])


def read_table(
    descriptor: Sequence[int] | None, data: bytes | Sequence[int] | int | None, *, little: bool
) -> LookupTable:
    """The table that a descriptor and its data mean, whatever their type in the file. UnusableError: `bad_lut`."""
    try:
        count, first, bits = (int(value) for value in descriptor or ())
    except (TypeError, ValueError):
        raise UnusableError("bad_lut") from None
    count = count % 65536 or 65536
    if data is None or not 8 <= bits <= 16:
        raise UnusableError("bad_lut")
    if isinstance(data, bytes | bytearray):
        wide = len(data) >= 2 * count
        raw = np.frombuffer(data[: 2 * count if wide else count], dtype=("<u2" if little else ">u2") if wide else "u1")
    else:
        raw = np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF
        if len(raw) < count <= 2 * len(raw):  # two entries of 8 bits to a word
            raw = np.frombuffer(raw.astype("<u2").tobytes(), dtype="u1")
    if len(raw) < count:
        raise UnusableError("bad_lut")
    return LookupTable(first, bits, raw[:count].astype(np.float64))


def palette(dataset: Dataset, indices: NDArray[Any]) -> NDArray[np.float64]:
    """Colours (H, W, 3) in [0, 1] of a PALETTE COLOR image (H, W). UnusableError: `bad_lut`, `unsupported_palette`."""
    if "RedPaletteColorLookupTableData" not in dataset:
        return _segmented(dataset, indices)
    little = bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)
    planes = []
    for colour in _COLOURS:
        table = read_table(
            dataset.get(f"{colour}PaletteColorLookupTableDescriptor"),
            dataset.get(f"{colour}PaletteColorLookupTableData"),
            little=little,
        )
        # Entries of 8 bits are at times kept in words, with the byte in both halves.
        bits = 16 if table.bits > 8 or table.entries.max() > 255 else 8
        planes.append(table(indices, signed=indices.dtype.kind == "i") / (2.0**bits - 1))
    return np.stack(planes, axis=-1)


def _segmented(dataset: Dataset, indices: NDArray[Any]) -> NDArray[np.float64]:
    descriptor = dataset.get("RedPaletteColorLookupTableDescriptor")
    if descriptor is None or "SegmentedRedPaletteColorLookupTableData" not in dataset:
        raise UnusableError("bad_lut")
    if int(descriptor[2]) == 8 and not 0 < int(descriptor[0]) <= 256:
        raise UnusableError("unsupported_palette")  # pydicom counts its entries in 8 bits
    colours = apply_color_lut(indices, dataset)
    return np.asarray(colours[..., :3] / (2.0 ** (8 * colours.dtype.itemsize) - 1))
