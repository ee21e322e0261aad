"""One NIfTI file to slices in [0, 1], shown as DICOM shows them: the patient's right at the left, front or head on top.

Runs in the process that decodes (see `decoder`). Descriptions and extensions of the header, which may name a patient,
are not read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.decoding.dicom.grey import stretched
from fedgraft.client.data.decoding.dicom.windows import windowed
from fedgraft.client.data.decoding.unusable import FaultyError, UnusableError
from fedgraft.client.data.decoding.wall import wall

SUFFIXES = (".nii", ".nii.gz")
SLICED, NO_ORIENTATION, NO_SPACING = "volumes_by_slices", "orientation_not_stated", "spacing_not_stated"

Plane = Literal["axial", "coronal", "sagittal"]
_MM = {"meter": 1000.0, "micron": 0.001}
_ACROSS: Mapping[str, tuple[int, int, int]] = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
"""By plane the axes of a volume (right, front, head) that are its slices, rows and columns."""
Floats = NDArray[np.float32]


def read(path: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[Floats]]:
    """The slices of `plane` that `frames` asks for, by `window` or robust percentiles of the volume.

    Words: `pixel_aspect`, `width_mm`, `slice_mm` (0 if not known), `notes`, `axes` as stored, and `shape` as shown.
    With `mask` the values are as they are. UnusableError says why there is none.
    """
    notes: Counter[str] = Counter()
    with wall("unreadable"):
        volume, spacing_mm, axes = _canonical(path, notes)
    slices, down, across = _ACROSS[str(options["plane"])]
    count = volume.shape[slices]
    chosen = {"all": list(range(count)), "middle": [count // 2], "first": [0]}[str(options["frames"])]
    if len(chosen) < count:
        notes[SLICED] += 1
    shown = volume if options.get("mask") else _grey(volume, options.get("window"))
    planes = [_plane(shown, slices, index) for index in chosen]
    height, width = spacing_mm[down], spacing_mm[across]
    words: dict[str, Any] = {"pixel_aspect": height / width if height and width else 1.0, "width_mm": width}
    words |= {"slice_mm": spacing_mm[slices], "notes": list(notes), "axes": axes, "shape": volume.shape[:3]}
    return words, planes


def _canonical(path: Path, notes: Counter[str]) -> tuple[NDArray[Any], tuple[float, ...], str]:
    """Values with axes to the patient's right, front and head, colour last; mm between them; the axes as stored."""
    try:
        nib: Any = import_module("nibabel")
    except ImportError:
        raise FaultyError("cannot be read: NIfTI needs nibabel", 'pip install "fedgraft[medical]"') from None
    if path.stat().st_size == 0:
        raise UnusableError("empty_file")
    image = nib.load(path, mmap=False)
    if not isinstance(image, nib.Nifti1Image):  # NIfTI 2 is one too
        raise UnusableError("unreadable")
    values = _values(image, path)
    header, affine = image.header, np.asarray(image.affine, np.float64)
    if not int(header["qform_code"]) and not int(header["sform_code"]):
        notes[NO_ORIENTATION] += 1
    order = nib.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if np.isnan(order).any():
        raise UnusableError("no_orientation")
    turned = nib.apply_orientation(values, order)
    factor = _MM.get(str(header.get_xyzt_units()[0]), 1.0)
    stored = nib.affines.voxel_sizes(affine) * factor
    spacing = [0.0] * 3
    for axis, (to, _) in enumerate(order):
        spacing[int(to)] = float(stored[axis]) if 0 < stored[axis] < math.inf else 0.0
    if not all(spacing):
        notes[NO_SPACING] += 1
    return np.asarray(turned), tuple(spacing), "".join(nib.aff2axcodes(affine))


def _values(image: Any, path: Path) -> NDArray[Any]:
    """Values (X, Y, Z), or (X, Y, Z, 3) in [0, 1] of colour; scaled by the header's slope and intercept."""
    shape = tuple(map(int, image.shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise UnusableError("more_than_three_dimensions")
    kind = image.get_data_dtype()
    size = math.prod(shape) * kind.itemsize
    if not math.prod(shape):
        raise UnusableError("empty_file")
    if path.suffix.lower() == ".nii" and int(image.dataobj.offset) + size > path.stat().st_size:
        raise UnusableError("truncated")
    shape = (*shape, *(1,) * (3 - len(shape)))
    if kind.names:
        if set(kind.names) - {"R", "G", "B", "A"} or len(kind.names) < 3:
            raise UnusableError("complex_values")
        colour = np.asarray(image.dataobj.get_unscaled()).reshape(shape)
        return np.stack([colour[name] for name in "RGB"], axis=-1).astype(np.float32) / np.float32(255)
    if kind.kind == "c":
        raise UnusableError("complex_values")
    return np.asarray(image.get_fdata(caching="unchanged", dtype=np.float32)).reshape(shape)


def _grey(volume: NDArray[Any], window: Mapping[str, float] | None) -> NDArray[Any]:
    """All of a volume in [0, 1]: of its own window or percentiles, so that its slices can be compared."""
    if volume.ndim == 4:
        return volume
    values = volume.astype(np.float64)
    shown = (
        windowed(values, window["center"], window["width"], "LINEAR")
        if window
        else stretched(values, values[np.isfinite(values)])
    )
    return np.nan_to_num(shown, nan=0.0).astype(np.float32)


def _plane(volume: NDArray[Any], axis: int, index: int) -> Floats:
    """One slice (H, W) or (H, W, 3): rows from the head or the front down, columns from the right or the front."""
    cut = volume.take(index, axis=axis)  # of the axes that are left, that of the columns is always the first
    return np.ascontiguousarray(np.swapaxes(cut, 0, 1)[::-1, ::-1], np.float32)
