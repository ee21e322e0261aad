"""One DICOM file to images in [0, 1] at its own resolution: right values, and nothing about the patient but a key.

White is high. What stands between stored and shown values is in `grey` and `lookup` beside this file.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import get_expected_length, pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from fedgraft.client.data.decoding.dicom.acquired import frame_not_acquired, not_acquired
from fedgraft.client.data.decoding.dicom.dicom_image import DERIVED_FRAMES, DicomImage
from fedgraft.client.data.decoding.dicom.facts import facts, subgroup_tags
from fedgraft.client.data.decoding.dicom.grey import functional_group, grey, stored_bits
from fedgraft.client.data.decoding.dicom.lookup import palette
from fedgraft.client.data.decoding.dicom.numbers import pair, whole
from fedgraft.client.data.decoding.dicom.read_tags import IMAGE_TAGS
from fedgraft.client.data.decoding.shades import Picture, image, shades
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.decoding.wall import wall
from fedgraft.client.data.spec import Window

UNSUPPORTED = "unsupported_syntax"
MORE_PIXELS = "more_pixels_than_said"
_END_OF_IMAGE, _PADDING = b"\xff\xd9", b"\0\xff"
"""What ends an image of JPEG, JPEG-LS and JPEG 2000, and may stand behind it."""
_WITH_END = frozenset({*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes})

_SILENT = logging.CRITICAL + 1
_NEEDED = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DIRECTORY, _STANDARD = "1.2.840.10008.1.3.10", "1.2.840.10008."
_RGB = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
"""What pydicom and its decoders bring to RGB. Retired colour spaces (YBR_PARTIAL, ARGB, CMYK, HSV) are refused."""


def read_dicom(path: Path, window: Window | None, frames: str, accept: Collection[str] = ()) -> DicomImage:
    """Read one file. UnusableError says why it cannot be used; nothing else is raised for a bad file.

    `accept` lists kinds of objects that are used though no scanner took them (see `acquired`).
    """
    found, pictures = read_pictures(path, window, frames, accept)
    with wall("undecodable"):
        return replace(found, frames=[image(picture) for picture in pictures])


def read_pictures(
    path: Path, window: Window | None, frames: str, accept: Collection[str] = ()
) -> tuple[DicomImage, list[Picture]]:
    """As `read_dicom`, with the frames beside it as they are stored, and what stored values look like."""
    with quiet():
        dataset = _open(path)
        with wall("undecodable"):
            _check(dataset, accept)
            notes = Counter[str]()
            indices = _chosen(dataset, frames, accept, notes)
            pictures = [_image(dataset, index, window, notes) for index in indices]
            aspect, width_mm = _pixel(dataset, indices[0])
            told = facts(dataset, indices[0])
            words = DicomImage([], aspect, _keys(dataset), told, width_mm, subgroup_tags(dataset), tuple(notes))
            return words, pictures


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom's warnings quote values of elements, and it logs them too; they must not reach a log."""
    for name in ("pydicom", "highdicom"):
        if (logger := logging.getLogger(name)).level != _SILENT:  # to set it makes every logger think anew
            logger.setLevel(_SILENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(path: Path) -> Dataset:
    dataset: Dataset
    with wall("unreadable"):
        try:
            if path.stat().st_size == 0:
                raise UnusableError("empty_file")
            try:
                dataset = pydicom.dcmread(path, specific_tags=IMAGE_TAGS)
            except InvalidDicomError:  # old files have no preamble: accept them if what is read makes sense
                dataset = pydicom.dcmread(path, specific_tags=IMAGE_TAGS, force=True)
                if "SOPClassUID" not in dataset and "Rows" not in dataset:
                    raise UnusableError("not_dicom") from None
        except PermissionError:
            raise UnusableError("no_right_to_read") from None
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = _guessed_syntax(dataset)
        syntax = dataset.file_meta.TransferSyntaxUID
        if not syntax.is_transfer_syntax:  # a vendor's own, newer than pydicom, or damaged
            raise UnusableError(UNSUPPORTED if syntax.is_valid and len(dataset) else "unreadable")
    return dataset


def _can_decode(syntax: pydicom.uid.UID) -> bool:
    """Whether a decoder for the syntax is installed."""
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _guessed_syntax(dataset: Dataset) -> pydicom.uid.UID:
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _check(dataset: Dataset, accept: Collection[str]) -> None:
    """UnusableError for what is no acquired image, may show who the patient is, or lacks what an image needs."""
    if dataset.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
        raise UnusableError("not_an_image")
    if (kind := not_acquired(dataset, accept)) is not None:
        raise UnusableError(kind)
    if "YES" in str(dataset.get("BurnedInAnnotation") or "").upper():
        raise UnusableError("burned_in_annotation")
    native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    if not any(name in dataset for name in _PIXELS):
        # pydicom drops an element that the file's end cuts off; compressed pixels take all others with them.
        cut = ("Rows" in dataset and "Columns" in dataset) or (not native and not len(dataset))
        if not cut and _is_image(dataset):
            raise UnusableError("image_without_pixels")
        raise UnusableError("truncated" if cut else "no_pixels")
    if not _can_decode(dataset.file_meta.TransferSyntaxUID):
        raise UnusableError(UNSUPPORTED)
    if any(dataset.get(name) in (None, "") for name in _NEEDED):
        raise UnusableError("missing_elements")
    whole(dataset, "NumberOfFrames")  # before pydicom reckons with it
    if native and "PixelData" in dataset and len(dataset.PixelData) < get_expected_length(dataset):
        raise UnusableError("truncated")


def _is_image(dataset: Dataset) -> bool:
    """Whether the object says that it is an image, as "CT Image Storage" does, or its class is missing or cut off."""
    storage = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if not storage.startswith(_STANDARD):  # a vendor's own objects often have no pixels
        return _STANDARD.startswith(storage)
    name = pydicom.uid.UID(storage).name
    return name == storage or "Image Storage" in name


def _chosen(dataset: Dataset, frames: str, accept: Collection[str], notes: Counter[str]) -> Sequence[int]:
    """The numbers of the frames that are used, of those that a scanner took. UnusableError if it took none."""
    count = max(1, whole(dataset, "NumberOfFrames") or 1)
    kinds = [frame_not_acquired(dataset, index, accept) for index in range(count)]
    taken = [index for index, kind in enumerate(kinds) if kind is None]
    if not taken:
        raise UnusableError(str(kinds[0]))
    if len(taken) < count:
        notes[DERIVED_FRAMES] += 1
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated and "PixelData" in dataset:
        surplus = len(dataset.PixelData) - get_expected_length(dataset)
        if surplus >= get_expected_length(dataset) // count:
            notes[MORE_PIXELS] += 1
    return {"all": taken, "middle": [taken[len(taken) // 2]], "first": taken[:1]}[frames]


def _image(dataset: Dataset, index: int, window: Window | None, notes: Counter[str]) -> Picture:
    _check_end(dataset, index)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric in _RGB:
        return _unit(np.asarray(pixel_array(dataset, index=index, view_only=True)), int(dataset.BitsStored))
    if int(dataset.SamplesPerPixel) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"):
        raise UnusableError("unknown_photometric")
    stored = _stored(dataset, index)
    if photometric == "PALETTE COLOR":
        return shades(stored, lambda values: palette(dataset, values).astype(np.float32))
    return grey(dataset, stored, index, window, notes)


def _check_end(dataset: Dataset, index: int) -> None:
    """UnusableError: `truncated`, for a stream without its end. Decoders fill up what is missing, and say nothing."""
    if dataset.file_meta.TransferSyntaxUID not in _WITH_END:
        return
    offsets = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    count = max(1, whole(dataset, "NumberOfFrames") or 1)
    extended = None if None in offsets else (offsets[0], offsets[1])
    stream = get_frame(dataset.PixelData, index, number_of_frames=count, extended_offsets=extended)
    if not stream.rstrip(_PADDING).endswith(_END_OF_IMAGE):
        raise UnusableError("truncated")


def _stored(dataset: Dataset, index: int) -> NDArray[Any]:
    """Stored values of a frame of one sample per pixel."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != RLELossless:
        return np.asarray(pixel_array(dataset, index=index))  # codecs know nothing of cells; pydicom repairs the sign
    # pydicom would drop unused bits as if the pixel always stood in the lowest ones.
    cells = pixel_array(dataset, index=index, correct_unused_bits=False, view_only=True)
    return stored_bits(dataset, np.asarray(cells))


def _unit(colours: NDArray[Any], bits: int) -> Picture:
    if colours.ndim != 3 or colours.shape[-1] != 3:
        raise UnusableError("unknown_photometric")
    return shades(colours, lambda values: np.clip(values.astype(np.float32) / np.float32(2**bits - 1), 0, 1))


def _pixel(dataset: Dataset, index: int) -> tuple[float, float]:
    """Height of a pixel over its width, and its width in mm; 1 and 0 where nothing sensible is said."""
    for source, name in (
        (functional_group(dataset, index, "PixelMeasuresSequence"), "PixelSpacing"),
        (dataset, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
        (dataset, "PixelAspectRatio"),
    ):
        if (size := pair(source, name)) is None:
            continue
        down, across = size
        if down > 0 and across > 0 and 0.05 < down / across < 20:
            return down / across, across if name != "PixelAspectRatio" else 0.0
    return 1.0, 0.0


def _keys(dataset: Dataset) -> dict[str, str]:
    names = {
        "patient": "PatientID",
        "study": "StudyInstanceUID",
        "series": "SeriesInstanceUID",
        "sop": "SOPInstanceUID",
    }
    return {key: str(dataset.get(name) or "").strip("\0 ") for key, name in names.items()}
