"""Folders of ordinary images: PNG, JPEG, TIFF, BMP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedgraft.client.data.decoding.decoder import DecodingLimits, read_images
from fedgraft.client.data.decoding.images import SUFFIXES
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
        if path.suffix.lower() not in SUFFIXES:
            raise UnusableError("not_an_image")
        image = read_images(path, self._frames, self._limits)
        cases = [Case(frame) for frame in image.frames]
        return Contents(cases, len(cases) > 1, problems=Counter(image.notes))

    def finish(self) -> Counter[str]:
        """Nothing is odd about several files together."""
        return Counter()
