"""One DICOM file to images in [0, 1] at its own resolution: right values, and nothing about the patient but a key.

Order of what is applied (PS3.3 C.11.1, C.11.2, C.7.6.3): stored bits, modality LUT or rescale, VOI LUT or window, then
polarity. White is high. Padding becomes 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import RLELossless

from client.data.spec import Window

Floats = NDArray[np.float32]

_TAGS = [
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "Modality",
    "Manufacturer",
    "BurnedInAnnotation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SmallestImagePixelValue",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "PixelAspectRatio",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "LUTDescriptor",
    "LUTData",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "ICCProfile",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
"""All that is read; names, birth dates, addresses and the like are not among it."""

_PERCENTILES = (0.5, 99.5)


class UnusableError(Exception):
    """A file that gives no image; `reason` is a constant word that is counted and may be shown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class DicomImage:
    """Frames (H, W) or (H, W, 3) in [0, 1], height over width of a pixel, keys for joining, facts without identity."""

    frames: list[Floats]
    pixel_aspect: float
    keys: dict[str, str] = field(repr=False)
    facts: dict[str, str]


def read_dicom(path: Path, window: Window | None, frames: str) -> DicomImage:
    """Read one file. UnusableError says why it cannot be used; nothing else is raised for a bad file."""
    with _quiet():
        dataset = _open(path)
        if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
            raise UnusableError("burned_in_annotation")
        if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise UnusableError("no_pixels")
        try:
            images = [_image(dataset, index, window) for index in _chosen(dataset, frames)]
        except (UnusableError, MemoryError):
            raise
        except Exception as error:  # decoders raise what they like on damaged data
            raise UnusableError(_reason(dataset, error)) from None
        return DicomImage(images, _aspect(dataset), _keys(dataset), _facts(dataset))


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom's warnings quote values of elements; they must not reach a log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(path: Path) -> Dataset:
    dataset: Dataset
    try:
        if path.stat().st_size == 0:
            raise UnusableError("empty_file")
        dataset = pydicom.dcmread(path, specific_tags=_TAGS)
    except InvalidDicomError:
        dataset = _open_without_preamble(path)
    except UnusableError:
        raise
    except Exception:  # whatever a damaged file makes the parser say
        raise UnusableError("unreadable") from None
    if "DirectoryRecordSequence" in dataset or str(dataset.get("SOPClassUID", "")) == "1.2.840.10008.1.3.10":
        raise UnusableError("not_an_image")
    return dataset


def _open_without_preamble(path: Path) -> Dataset:
    """Old files start with the data set itself: accept them if that makes sense."""
    try:
        dataset = pydicom.dcmread(path, specific_tags=_TAGS, force=True)
    except Exception:  # as above
        raise UnusableError("not_dicom") from None
    if "SOPClassUID" not in dataset and "Rows" not in dataset:
        raise UnusableError("not_dicom")
    if not hasattr(dataset.file_meta, "TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian
            if implicit
            else pydicom.uid.ExplicitVRLittleEndian
            if little
            else pydicom.uid.ExplicitVRBigEndian
        )
    return dataset


def _reason(dataset: Dataset, error: Exception) -> str:
    text = str(error).lower()
    if (
        "length" in text
        or "truncated" in text
        or "end of" in text
        or "insufficient" in text
        or isinstance(error, EOFError)
    ):
        return "truncated"
    syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
    if syntax is not None and getattr(syntax, "is_compressed", False):
        return "undecodable"
    return "unreadable"


def _chosen(dataset: Dataset, frames: str) -> list[int]:
    try:
        count = int(dataset.get("NumberOfFrames", 1) or 1)
    except (TypeError, ValueError):
        count = 1
    return {"all": list(range(count)), "middle": [count // 2], "first": [0]}[frames]


def _image(dataset: Dataset, index: int, window: Window | None) -> Floats:
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    stored = np.asarray(pixel_array(dataset, index=index))
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(_stored_bits(dataset, stored), dataset)
        return _unit(colours, 8 * colours.dtype.itemsize)
    if stored.ndim == 3:
        return _unit(stored, int(dataset.BitsStored))
    if not photometric.startswith("MONOCHROME"):
        raise UnusableError("unknown_photometric")
    values = _stored_bits(dataset, stored)
    padding = _padding(dataset, values)
    grey = _display(dataset, _modality(dataset, values), padding, window)
    if photometric == "MONOCHROME1":
        grey = 1 - grey
    if padding is not None:
        grey[padding] = 0
    return np.ascontiguousarray(grey, dtype=np.float32)


def _unit(colours: NDArray[Any], bits: int) -> Floats:
    return np.asarray(np.clip(colours.astype(np.float32) / np.float32(2**bits - 1), 0, 1))


def _stored_bits(dataset: Dataset, stored: NDArray[Any]) -> NDArray[Any]:
    """Only the bits that belong to the pixel: overlays may lie above (or below) them in uncompressed data."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if stored.dtype.kind not in "iu" or (syntax.is_compressed and syntax != RLELossless and syntax.is_encapsulated):
        return stored
    bits = int(dataset.BitsStored)
    allocated = 8 * stored.dtype.itemsize
    low = int(dataset.get("HighBit", bits - 1)) + 1 - bits
    if bits >= allocated or bits < 1 or low < 0 or low + bits > allocated:
        return stored
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    plain = native.view(f"u{native.dtype.itemsize}").astype(np.int64) >> low
    plain &= (1 << bits) - 1
    if int(dataset.get("PixelRepresentation", 0)) == 1:
        plain = np.where(plain >= 1 << (bits - 1), plain - (1 << bits), plain)
    return plain.astype(np.int32)


def _padding(dataset: Dataset, values: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where there is no image: stored values equal to, or in the range of, the padding value."""
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int) or values.dtype.kind not in "iu":
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((first, last if isinstance(last, int) else first))
    mask = (values >= low) & (values <= high)
    return mask if mask.any() and not mask.all() else None


def _modality(dataset: Dataset, values: NDArray[Any]) -> NDArray[np.float64]:
    if dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(values, dataset), dtype=np.float64)
    slope, intercept = _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)
    transform = _functional_group(dataset, "PixelValueTransformationSequence")
    if "RescaleSlope" not in dataset and transform is not None:
        slope, intercept = _number(transform, "RescaleSlope", 1.0), _number(transform, "RescaleIntercept", 0.0)
    return values.astype(np.float64) * slope + intercept


def _functional_group(dataset: Dataset, name: str) -> Dataset | None:
    """The group of that name that all frames of an enhanced image share."""
    shared = dataset.get("SharedFunctionalGroupsSequence")
    inner = shared[0].get(name) if shared else None
    return inner[0] if inner else None


def _display(
    dataset: Dataset, values: NDArray[np.float64], padding: NDArray[np.bool_] | None, window: Window | None
) -> NDArray[np.float64]:
    """To [0, 1] by the site's window, else the file's VOI LUT, else its first window, else robust percentiles."""
    if window is not None:
        return _linear(values, window.center, window.width)
    if luts := dataset.get("VOILUTSequence"):
        return _voi_lut(values, luts[0], little=dataset.file_meta.TransferSyntaxUID.is_little_endian)
    source = dataset if "WindowWidth" in dataset else _functional_group(dataset, "FrameVOILUTSequence")
    center, width = (_first(source, name) if source is not None else None for name in ("WindowCenter", "WindowWidth"))
    if center is not None and width is not None and width > 0:
        function = str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR")
        if function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
        if function == "LINEAR_EXACT":
            return np.clip((values - center) / width + 0.5, 0, 1)
        if width >= 1:
            return _linear(values, center, width)
    seen = values if padding is None else values[~padding]
    low, high = np.percentile(seen[np.isfinite(seen)], _PERCENTILES)
    if high <= low:
        low, high = float(np.min(seen)), float(np.max(seen))
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _linear(values: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2.1, the function LINEAR, to [0, 1]."""
    if width <= 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _voi_lut(values: NDArray[np.float64], item: Dataset, *, little: bool) -> NDArray[np.float64]:
    """Look up rounded values; below and above the table stand its first and last entries (PS3.3 C.11.2.1.1)."""
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries or 65536
    # The second number has the sign of the pixels, but is often read as unsigned.
    if first >= 32768 and values.min() < 0:
        first -= 65536
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, dtype="u1" if len(data) == entries else "<u2" if little else ">u2")
    table = np.asarray(data, dtype=np.float64)[:entries]
    index = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return np.asarray(np.clip(table[index] / (2.0**bits - 1), 0, 1))


def _first(dataset: Dataset, name: str) -> float | None:
    value = dataset.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, list | tuple | pydicom.multival.MultiValue):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _number(dataset: Dataset, name: str, default: float) -> float:
    value = _first(dataset, name)
    return default if value is None else value


def _aspect(dataset: Dataset) -> float:
    """Height of a pixel over its width; 1 where nothing sensible is said."""
    measures = _functional_group(dataset, "PixelMeasuresSequence")
    for source, name in (
        (dataset, "PixelSpacing"),
        (measures, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "PixelAspectRatio"),
    ):
        pair = source.get(name) if source is not None else None
        try:
            down, across = (float(value) for value in pair or ())
        except (TypeError, ValueError):
            continue
        if down > 0 and across > 0 and 0.05 < down / across < 20:
            return down / across
    return 1.0


def _keys(dataset: Dataset) -> dict[str, str]:
    names = {
        "patient": "PatientID",
        "study": "StudyInstanceUID",
        "series": "SeriesInstanceUID",
        "sop": "SOPInstanceUID",
    }
    return {key: str(dataset.get(name, "") or "").strip() for key, name in names.items()}


def _facts(dataset: Dataset) -> dict[str, str]:
    return {
        "modality": str(dataset.get("Modality", "") or "unknown"),
        "manufacturer": str(dataset.get("Manufacturer", "") or "unknown"),
        "photometric": str(dataset.get("PhotometricInterpretation", "") or "unknown"),
        "bits": str(dataset.get("BitsStored", "") or "unknown"),
    }
