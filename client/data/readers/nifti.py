"""Folders of NIfTI files: slices of volumes, turned as DICOM shows them, with their size in mm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedgraft.client.data.decoding.decoder import DecodingLimits, decode
from fedgraft.client.data.decoding.nifti import SUFFIXES
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.readers.reader import Case, Contents, Geometry
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.study.inputs import InputSpec
from fedgraft.common.study.tasks import AnyTask

_Found = tuple[dict[str, Any], list[NDArray[Any]]]
_READ = "fedgraft.client.data.decoding.nifti:read"


class NiftiReader:
    """Reads NIfTI files, told by their suffix; see `Reader`. Each file is a patient, unless a table says otherwise."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec) -> None:  # noqa: ARG002
        window = spec.window.model_dump() if spec.window is not None else None
        self._options = {"frames": spec.frames, "plane": spec.plane, "window": window}
        self._limits = DecodingLimits(spec.file_seconds, spec.file_gigabytes)

    def read(self, path: Path, name: str) -> Contents:  # noqa: ARG002
        """The slices that the cohort asks for."""
        return self.contents(path, self.decode(path))

    def decode(self, path: Path) -> _Found:
        """A file's slices, and words on them."""
        if not path.name.lower().endswith(SUFFIXES):
            raise UnusableError("not_nifti")
        return decode(_READ, path, self._options, self._limits)

    def contents(self, path: Path, decoded: _Found) -> Contents:  # noqa: ARG002
        """Its cases."""
        words, planes = decoded
        geometry = Geometry(words["pixel_aspect"], words["width_mm"], words["slice_mm"])
        width = words["width_mm"]
        facts = {"axes": words["axes"], "spacing": f"{width:.2g} mm" if width else "not stated"}
        cases = [Case(plane, geometry=geometry) for plane in planes]
        return Contents(cases, len(cases) > 1, tuple(words["shape"]), Counter(words["notes"]), facts)

    def finish(self) -> Counter[str]:
        """Nothing is odd about several files together."""
        return Counter()
