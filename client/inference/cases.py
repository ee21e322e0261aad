"""Cases to ask a model about, read as those of a cohort are: by the reader of their kind, fedgraft's or a plug-in's.

Labels, patients and splits are not asked for. Every file gives cases, or is listed with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import ValidationError

from fedgraft.client.data.cohorts.folders import HIDDEN, walk
from fedgraft.client.data.cohorts.scan import name_below, stored
from fedgraft.client.data.decoding import nifti
from fedgraft.client.data.decoding.dicom.dicom_image import DERIVED_FRAMES
from fedgraft.client.data.decoding.images import SUFFIXES
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.kinds import KINDS, kind_named, kinds_with
from fedgraft.client.data.readers.opening import open_reader
from fedgraft.client.data.readers.reader import Case, Contents, Reader
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import read_config, read_site
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.config.config_files import describe
from fedgraft.common.config.suggest import instead
from fedgraft.common.study.inputs import InputSpec, TableInput

READ_BY = (
    "accept",
    "columns",
    "extractor",
    "file_gigabytes",
    "file_seconds",
    "frames",
    "missing",
    "missing_values",
    "plane",
    "window",
)
"""The keys of a cohort that decide what a model sees of a case."""
_TOLD = ("dicom", "images", "nifti", "npz")
"""The kinds of images that a file's name tells; DICOM files may have any."""


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
class InputCase:
    """One case as stored, (channels, size, size) or a row (width,); or why there is none.

    `file` is named relative to the folder; where one file holds all cases, it is what that calls the case. `frame`
    counts the images of a file, or of such a case, from 0.
    """

    file: str
    frame: int
    stored: NDArray[Any] | None
    problem: str = ""
    source: ImageSource | None = None
    """The DICOM file that it is of; None if it is of no such file."""
    line: int | None = None
    """The line of a table that it is of."""

    @property
    def cells(self) -> dict[str, str]:
        """What tells it from the others, as cells of a table."""
        if self.line is not None:
            return {"line": str(self.line)}
        return {"file": self.file, "frame": str(self.frame), "problem": self.problem}


@dataclass(frozen=True)
class Reading:
    """How data are read: as which kind, None for what their names tell, and by which keys of a cohort (`READ_BY`)."""

    kind: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any] | Path | str | None) -> Reading:
        """From the keys of a cohort, or as a site reads its own: by its folder or its configuration's file.

        InputError for a key that changes nothing of what a model sees; StudyError for a configuration's faults.
        """
        if given is None:
            return cls()
        if isinstance(given, Path | str):
            place = Path(given)
            spec = (read_config(place) if place.is_file() else read_site(place)).cohort
            # Of several frames a cohort has one, and whoever asks a model has all, unless they say otherwise.
            said = {key for key in READ_BY if getattr(spec, key) != CohortSpec.model_fields[key].get_default()}
            return cls(
                spec.kind, {key: getattr(spec, key) for key in READ_BY if key in said | {"frames"} & spec.what.keys}
            )
        for key in given:
            if key != "kind" and key not in READ_BY:
                raise InputError(
                    f"{key}: changes nothing of what a model sees of a case{instead(key, ('kind', *READ_BY))}."
                )
        return cls(given.get("kind"), {key: value for key, value in given.items() if key != "kind"})

    def updated(self, other: Reading) -> Reading:
        """The same with what the other says in its place."""
        return Reading(other.kind or self.kind, {**self.keys, **other.keys})

    def spec(self, path: Path, root: Path, wanted: InputSpec) -> CohortSpec:
        """The cohort that a file is read as part of. InputError if its kind is not what the model is for."""
        name = self.kind or _kind_of(path, wanted)
        if self.kind is None and (wrong := [key for key in self.keys if not _is_for(key, wanted)]):
            raise InputError(f"{wrong[0]}: is for data of kind {', '.join(kinds_with(wrong[0]))}, and none are here.")
        keys = {key: value for key, value in self.keys.items() if self.kind is not None or _applies(key, name)}
        keys = ({"frames": "all"} if _applies("frames", name) else {}) | keys
        if isinstance(wanted, TableInput) and "missing_values" in keys:  # of labels there may be none
            columns = {*wanted.numeric, *wanted.categorical}
            keys["missing_values"] = {key: words for key, words in keys["missing_values"].items() if key in columns}
        try:
            spec = CohortSpec.model_validate({"kind": name, "root": root, **keys})
        except ValidationError as error:
            raise StudyError("how the data are to be read", describe(error)) from None
        if wanted.kind not in spec.what.inputs:
            raise InputError(
                f"{path}: data of kind {name} give input of kind {' or '.join(spec.what.inputs)}, and the model is for "
                f"{wanted.kind}.",
                fix="Name other data, or another --kind.",
            )
        return spec.model_copy(update={"root": path}) if spec.what.one_file else spec


@dataclass(frozen=True)
class InputCases:
    """All cases in order, those that could not be used with the reason, and what is odd, by constant words."""

    all: list[InputCase]
    odd: Counter[str]
    place: str = "the files that were named"

    @property
    def usable(self) -> list[InputCase]:
        """Those that a model can be asked about. InputError if there is none."""
        found = [one for one in self.all if one.stored is not None]
        if not found:
            reasons = ", ".join(sorted({one.problem for one in self.all})) or "no files"
            raise InputError(
                f"{self.place}: nothing in it can be used ({reasons}).",
                fix="Is the path right, and the --kind of data?",
            )
        return found


def read_cases(data: Path, wanted: InputSpec, reading: Reading) -> InputCases:
    """All cases of a folder, or of a file. DataError if there is no such folder, or a file must not be used."""
    if not data.is_dir() and (data.is_file() or isinstance(wanted, TableInput)):
        return replace(read_files([(data, data.name, data.parent)], wanted, reading), place=str(data))
    told = reading.kind or (wanted.kind if isinstance(wanted, TableInput) else None)
    if told is not None and kind_named(told).one_file:
        raise InputError(f"{data}: is a folder, and data of kind {told} are one file.", fix="Name the file.")
    found = walk(data)
    mine = reading.kind is None or reading.kind in KINDS
    # Labels may lie beside images; what a plug-in reads, nobody else knows.
    files = [path for path in found.files if not (mine and path.suffix.lower() == ".csv")]
    cases = read_files(((path, name_below(path, data), data) for path in files), wanted, reading)
    passed = [(name_below(path, data), reason) for path, reason in found.passed_over if reason != HIDDEN]
    rest = [InputCase(name, 0, None, reason) for name, reason in passed]
    return InputCases([*cases.all, *rest], cases.odd, str(data))


def read_files(paths: Iterable[tuple[Path, str, Path]], wanted: InputSpec, reading: Reading) -> InputCases:
    """All cases of files, each given with what it is called and the folder that it is of."""
    readers: dict[tuple[str, Path], Reader] = {}
    cases, odd = list[InputCase](), Counter[str]()
    for path, name, root in paths:
        spec = reading.spec(path, root, wanted)
        if (key := (spec.kind, spec.root)) not in readers:
            readers[key] = open_reader(spec, (), wanted)
        try:
            contents = readers[key].read(path, name)
            cases += _of_file(path, name, contents, (spec, wanted))
        except UnusableError as unusable:
            cases.append(InputCase(name, 0, None, unusable.reason))
        else:
            odd.update(contents.problems)
    for reader in readers.values():
        odd.update(reader.finish())
    return InputCases(cases, +odd)


def _of_file(path: Path, name: str, contents: Contents, what: tuple[CohortSpec, InputSpec]) -> Iterator[InputCase]:
    spec, wanted = what
    found = list(contents.cases)
    frames: Counter[str] = Counter()
    for case in found:
        called = _called(name, case) if spec.what.one_file else name
        source = _source(path, case, contents, len(found)) if spec.kind == "dicom" else None
        yield InputCase(called, frames[called], stored(case, wanted, path), "", source, case.line)
        frames[called] += 1


def _called(name: str, case: Case) -> str:
    return case.keys.get("path") or (name if case.row is None else f"row {case.row}")


def _source(path: Path, case: Case, contents: Contents, frames: int) -> ImageSource:
    height, width = case.values.shape[:2]
    return ImageSource(path, (height, width), case.geometry.pixel_aspect, frames, DERIVED_FRAMES in contents.problems)


def _kind_of(path: Path, wanted: InputSpec) -> str:
    """The kind of data that a file is, by the model's input and the file's name."""
    if isinstance(wanted, TableInput):
        return wanted.kind
    if path.suffix.lower() in SUFFIXES:
        return "images"
    if path.name.lower().endswith(nifti.SUFFIXES):
        return "nifti"
    return "npz" if path.suffix.lower() == ".npz" else "dicom"


def _is_for(key: str, wanted: InputSpec) -> bool:
    """Whether a key applies to data whose kind is told by their names."""
    return any(_applies(key, name) for name in ((wanted.kind,) if isinstance(wanted, TableInput) else _TOLD))


def _applies(key: str, kind: str) -> bool:
    return not kinds_with(key) or (kind in KINDS and key in KINDS[kind].keys) or kind not in KINDS
