"""Folders of ordinary images: PNG, JPEG, TIFF, BMP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedgraft.client.data.decoding.decoder import DecodingLimits, read_images
from fedgraft.client.data.decoding.images import SUFFIXES, ImageFile
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.readers.reader import Case, Contents
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.study.inputs import InputSpec
from fedgraft.common.study.tasks import AnyTask


class ImageReader:
    """Reads image files, told by their suffix; see `Reader`."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec) -> None:  # noqa: ARG002
        self._frames, self._limits = spec.frames, DecodingLimits(spec.file_seconds, spec.file_gigabytes)

    def read(self, path: Path, name: str) -> Contents:  # noqa: ARG002
        """The pages that the cohort asks for."""
        return self.contents(path, self.decode(path))

    def decode(self, path: Path) -> ImageFile:
        """A file's pages, and what is odd about them."""
        if path.suffix.lower() not in SUFFIXES:
            raise UnusableError("not_an_image")
        return read_images(path, self._frames, self._limits)

    def contents(self, path: Path, decoded: ImageFile) -> Contents:  # noqa: ARG002
        """Its cases."""
        cases = [Case(frame) for frame in decoded.frames]
        return Contents(cases, len(cases) > 1, problems=Counter(decoded.notes))

    def finish(self) -> Counter[str]:
        """Nothing is odd about several files together."""
        return Counter()
