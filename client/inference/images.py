"""A folder of images to look at: every file is read, or listed with the reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.cohorts.batches import fit
from fedgraft.client.data.cohorts.folders import HIDDEN, walk
from fedgraft.client.data.cohorts.scan import name_below
from fedgraft.client.data.decoding.decoder import read_dicom, read_images
from fedgraft.client.data.decoding.dicom.dicom_file import DERIVED_FRAMES
from fedgraft.client.data.decoding.images import SUFFIXES
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.common.study.inputs import ImageInput


@dataclass(frozen=True)
class ImageSource:
    """A DICOM file: where it is, the shape (H, W) of its frames, height over width of a pixel, how many are used.

    `derived_frames` says whether there are others, which no scanner took.
    """

    path: Path
    shape: tuple[int, int]
    pixel_aspect: float
    frames: int
    derived_frames: bool


@dataclass(frozen=True)
class Picture:
    """One image as stored (channels, size, size), of a file named relative to the folder; or why there is none."""

    file: str
    frame: int
    stored: NDArray[np.int16] | None
    problem: str = ""
    source: ImageSource | None = None
    """The DICOM file that it is of; None if it is of no such file."""


def pictures(root: Path, size: ImageInput, accept: Collection[str] = ()) -> Iterator[Picture]:
    """All frames of all files below a folder but tables, in order. DataError if it is no folder.

    `accept` lists kinds of DICOM objects that no scanner took and that are looked at all the same.
    """
    found = walk(root)
    for path in found.files:
        if path.suffix.lower() == ".csv":  # the labels of images may lie beside them
            continue
        yield from pictures_of(path, name_below(path, root), size, accept)
    for path, reason in found.passed_over:
        if reason != HIDDEN:
            yield Picture(name_below(path, root), 0, None, reason)


def pictures_of(path: Path, name: str, size: ImageInput, accept: Collection[str] = ()) -> Iterator[Picture]:
    """All frames of one file, which is called `name`; or why there are none."""
    source = None
    try:
        if path.suffix.lower() in SUFFIXES:
            frames, aspect = read_images(path, "all").frames, 1.0
        else:
            image = read_dicom(path, None, "all", accept)
            frames, aspect = image.frames, image.pixel_aspect
            height, width = frames[0].shape[:2]
            source = ImageSource(path, (height, width), aspect, len(frames), DERIVED_FRAMES in image.notes)
    except UnusableError as unusable:
        yield Picture(name, 0, None, unusable.reason)
        return
    for number, frame in enumerate(frames):
        yield Picture(name, number, fit(frame, aspect, size), source=source)
