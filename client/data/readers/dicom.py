"""Folders of DICOM files: each names its patient, and copies of an image count once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.decoding.decoder import DecodingLimits, read_dicom
from fedgraft.client.data.decoding.dicom.dicom_image import DicomImage
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.readers.reader import Case, Contents, Geometry
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.words import TableCell, is_missing
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import InputSpec
from fedgraft.common.study.tasks import AnyTask

NO_DICOM_INSIDE, _SUFFIXES = "no_dicom_inside", frozenset({".dcm", ".dicom", ".ima"})


class DicomReader:
    """Reads DICOM files; see `Reader`."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec) -> None:  # noqa: ARG002
        self._spec, self._seen = spec, _Seen(self._image)
        self._limits = DecodingLimits(spec.file_seconds, spec.file_gigabytes)

    def read(self, path: Path, name: str) -> Contents:  # noqa: ARG002
        """The frames that the cohort asks for."""
        return self.contents(path, self.decode(path))

    def decode(self, path: Path) -> DicomImage:
        """A file's frames, and what it says of them."""
        try:
            return self._image(path)
        except UnusableError as unusable:
            if unusable.reason == "not_dicom" and path.suffix.lower() in _SUFFIXES:
                raise UnusableError(NO_DICOM_INSIDE) from None
            raise

    def contents(self, path: Path, decoded: DicomImage) -> Contents:
        """Its cases. UnusableError for a copy of what was there before."""
        spec, image = self._spec, decoded
        patient = "" if is_missing(TableCell(image.keys["patient"], ""), spec) else image.keys["patient"]
        if self._seen.again(path, patient, image):
            raise UnusableError("duplicate")
        geometry = Geometry(image.pixel_aspect, image.width_mm)
        cases = [
            Case(frame, image.keys, patient, image.keys["study"], geometry, tags=image.tags) for frame in image.frames
        ]
        return Contents(cases, len(cases) > 1, problems=Counter(image.notes), facts=image.facts)

    def _image(self, path: Path) -> DicomImage:
        return read_dicom(path, self._spec.window, self._spec.frames, self._spec.accept, self._limits)

    def finish(self) -> Counter[str]:
        """Images that share their UID with other pixels."""
        return self._seen.finish(self._spec)


class _Seen:
    """Images by their SOP instance UID. The same pixels under one patient are a copy; other pixels are another image.

    Not of another patient's: whoever else is there must not count. Nearly all UIDs are there once, so that pixels are
    compared, and the first file of a UID read again, only when a second comes.
    """

    def __init__(self, read: Callable[[Path], DicomImage]) -> None:
        """`read` reads a file as it was read before."""
        self._read = read
        self._once: dict[str, tuple[Path, str]] = {}
        self._pixels: dict[str, set[bytes]] = {}
        self._own: set[tuple[str, str, bytes]] = set()
        self._files: Counter[str] = Counter()

    def again(self, path: Path, patient: str, image: DicomImage) -> bool:
        """Whether this patient's image of that UID and these pixels was there before."""
        if not (sop := image.keys["sop"]):
            return False
        if not self._files[sop]:
            self._once[sop] = path, patient
            self._files[sop] = 1
            return False
        if sop in self._once:
            self._compare(sop)
        pixels = _digest(image.frames)
        if (patient, sop, pixels) in self._own:
            return True
        self._own.add((patient, sop, pixels))
        self._pixels[sop].add(pixels)
        self._files[sop] += 1
        return False

    def _compare(self, sop: str) -> None:
        """Note the pixels of the first file of a UID."""
        path, patient = self._once.pop(sop)
        try:
            pixels = _digest(self._read(path).frames)
        except UnusableError:  # it has gone, or is another one now: nothing is a copy of it
            pixels = b""
        self._own.add((patient, sop, pixels))
        self._pixels[sop] = {pixels}

    def finish(self, spec: CohortSpec) -> Counter[str]:
        """Count images that share their UID with other pixels. DataError if labels go by that UID."""
        shared = sum(self._files[sop] for sop, pixels in self._pixels.items() if len(pixels) > 1)
        if shared and spec.labels is not None and spec.join == "sop":
            raise DataError(
                f"{spec.root}: {shared} images with other pixels share a SOPInstanceUID, so that it does not say which "
                "of them a label is of.",
                fix="Join by path, or have the UIDs mended; some de-identifiers write the same one everywhere.",
            )
        return +Counter({"same_uid_other_pixels": shared})


def _digest(frames: Sequence[NDArray[np.float32]]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        digest.update(repr(frame.shape).encode())
        digest.update(np.ascontiguousarray(frame).data)
    return digest.digest()
