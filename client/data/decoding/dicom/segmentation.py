"""DICOM segmentations (SEG): where which segment is, of which image. Read in the decoders' process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from fedgraft.client.data.decoding.dicom.dicom_file import quiet
from fedgraft.client.data.decoding.dicom.read_tags import SEGMENTATION_TAGS
from fedgraft.client.data.decoding.unusable import UnusableError

_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
NO_SEGMENTATION = "no_segmentation"
Key = tuple[str, int, str]
"""The image's SOP instance UID, its frame (counted from 1; 0 where none is named), and the segment's label."""


def read(path: Path, options: object) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:  # noqa: ARG001
    """A segmentation's masks (rows, columns) of 0 and 1, with a key each.

    The words are `keys`, `labels` of all segments, `covered`: the images that it was drawn on, also those on which it
    found nothing, and `unplaced`: how many frames name no image. A fractional mask is inside from a half on.
    """
    with quiet():
        dataset = pydicom.dcmread(path, specific_tags=SEGMENTATION_TAGS)
        if str(dataset.get("SOPClassUID")) not in _CLASSES:
            raise UnusableError(NO_SEGMENTATION)
        labels = {int(one.SegmentNumber): str(one.SegmentLabel).strip() for one in dataset.SegmentSequence}
        covered = sorted(set(_covered(dataset)))
        drawn: dict[Key, NDArray[np.uint8]] = {}
        unplaced = 0
        for inside, number, group in _frames(dataset, labels):
            images = list(_images(group)) or ([(covered[0], 0)] if len(covered) == 1 else [])
            unplaced += not images
            for sop, frame in images:
                key = (sop, frame, labels[number])
                drawn[key] = drawn.get(key, np.zeros_like(inside)) | inside
        words = {"keys": list(drawn), "labels": sorted(labels.values()), "covered": covered, "unplaced": unplaced}
        return words, list(drawn.values())


def _frames(dataset: Dataset, labels: dict[int, str]) -> Iterator[tuple[NDArray[np.uint8], int, Dataset]]:
    """The masks one by one, each with its segment's number and what is said of its frame."""
    pixels = np.asarray(pixel_array(dataset))
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    kind = str(dataset.SegmentationType)
    shared = dataset.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in dataset else Dataset()
    for values, group in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if kind == "LABELMAP":
            yield from (((values == number).astype(np.uint8), number, group) for number in labels)
            continue
        where = group if "SegmentIdentificationSequence" in group else shared
        number = int(where.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        least = int(dataset.MaximumFractionalValue) if kind == "FRACTIONAL" else 1
        yield (values.astype(np.int64) * 2 >= least).astype(np.uint8), number, group


def _images(group: Dataset) -> Iterator[tuple[str, int]]:
    for derivation in group.get("DerivationImageSequence") or ():
        for image in derivation.get("SourceImageSequence") or ():
            numbers = image.get("ReferencedFrameNumber")
            for number in [0] if numbers is None else np.atleast_1d(np.asarray(numbers, dtype=int)).tolist():
                yield str(image.ReferencedSOPInstanceUID).strip("\0 "), int(number)


def _covered(dataset: Dataset) -> Iterator[str]:
    for series in dataset.get("ReferencedSeriesSequence") or ():
        for image in series.get("ReferencedInstanceSequence") or ():
            yield str(image.ReferencedSOPInstanceUID).strip("\0 ")
