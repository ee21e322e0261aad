"""The DICOM objects of a whole prediction, in one folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, assert_never

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset

from fedgraft.client.data.cohorts.masks import unfit_mask
from fedgraft.client.data.decoding.dicom.dicom_file import quiet
from fedgraft.client.inference.answers import points_of
from fedgraft.client.inference.cases import InputCase
from fedgraft.client.inference.dicom.concepts import Algorithm
from fedgraft.client.inference.dicom.kinds import Kind
from fedgraft.client.inference.dicom.objects import Answer, ObjectPlace, capture, report, segmentations
from fedgraft.client.inference.dicom.source import demand_dicom, read_source
from fedgraft.client.inference.model import LoadedModel
from fedgraft.common.base.errors import ENDS, InputError
from fedgraft.common.base.files import make_private
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.tasks import Segmentation

_FOLDER = "dicom"
_SERIES: Mapping[Kind, int] = {"seg": 9001, "sr": 9002, "sc": 9003}
"""Numbers of the series that are made, behind those of scanners."""


class DicomOut:
    """Writes objects of these kinds to `out`/dicom when its block ends without an error, and nothing otherwise.

    Answers come image by image, those of a file's frames one after the other. InputError if an image is of no DICOM
    file, or no object can be made of it.
    """

    def __init__(self, kinds: Sequence[Kind], reader: LoadedModel, out: Path, usable: Sequence[InputCase]) -> None:
        demand_dicom(usable)
        self._kinds, self._reader, self._out = kinds, reader, out
        self._algorithm = Algorithm.of(reader.manifest)
        self._open: list[tuple[InputCase, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]] = []
        self._series: dict[tuple[Kind, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self._written = 0

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix=f".{_FOLDER}.", dir=self._out))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._write()
                make_private(self._folder)
                self._folder.rename(self._out / _FOLDER)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, image: InputCase, said: Mapping[str, np.ndarray], drawn: Mapping[str, np.ndarray]) -> None:
        """What the model says of one image, by task, and its overlays by name."""
        if self._open and self._open[0][0].file != image.file:
            self._write()
        self._open.append((image, said, drawn))

    @property
    def says(self) -> str:
        """What was written, and where."""
        return f"{self._written} DICOM objects ({', '.join(self._kinds)}): {self._out / _FOLDER}"

    def _write(self) -> None:
        """Write the objects of the file whose frames have all been added."""
        if not self._open:
            return
        image = self._open[0][0]
        assert image.source is not None
        source = read_source(image.source.path, image.file)
        for kind in self._kinds:
            with quiet():
                try:
                    for made in self._made(kind, source):
                        self._written += 1
                        made.save_as(self._folder / f"{self._written:06d}-{kind}.dcm")
                except (OSError, *ENDS):
                    raise
                except BaseException as error:  # its text may quote the header
                    raise InputError(
                        f"{image.file}: no {kind} object can be made of it ({type(error).__name__}).",
                        fix="Is its header as DICOM wants it? Leave this file or --dicom out.",
                    ) from None
        self._open = []

    def _made(self, kind: Kind, source: Dataset) -> list[Dataset]:
        tasks, algorithm = (*self._reader.tasks, *self._reader.others), self._algorithm
        match kind:
            case "seg":
                places = [self._place(source, kind) for _ in self._open]
                return segmentations(source, self._masks(), algorithm, places)
            case "sr":
                points = {task.name: points_of(self._reader, task.name) for task in tasks}
                answers = [Answer(said, points) for _, said, _ in self._open]
                return [report(source, answers, tasks, algorithm, self._place(source, kind))]
            case "sc":
                return [
                    capture(source, pixels, f"{name}, frame {image.frame + 1}", algorithm, self._place(source, kind))
                    for image, _, drawn in self._open
                    for name, pixels in drawn.items()
                ]
            case _:
                assert_never(kind)

    def _masks(self) -> dict[str, np.ndarray]:
        """By task the masks (frames, H, W), pixel by pixel those of the file's frames."""
        source, size = self._open[0][0].source, self._reader.input
        assert source is not None
        assert isinstance(size, ImageInput)
        names = [task.name for task in self._reader.others if isinstance(task, Segmentation)]
        return {
            name: np.stack(
                [unfit_mask(said[name], source.shape, source.pixel_aspect, size) for _, said, _ in self._open]
            )
            for name in names
        }

    def _place(self, source: Dataset, kind: Kind) -> ObjectPlace:
        """The next number in the series of this kind, of which each study of the sources has its own."""
        series = self._series.setdefault((kind, str(source.StudyInstanceUID)), str(hd.UID()))
        self._numbers[series] += 1
        return ObjectPlace(series, _SERIES[kind], self._numbers[series])
