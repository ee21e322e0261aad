"""From a site's files to cases with labels, for data of every kind: each file is used, or counted with the reason.

What a file is, its reader knows (`client.data.readers`). What it is worth is decided here: labels, masks, patients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedgraft.client.data.cohorts.batches import CaseBlocks, fit, fit_once, fitted_shape
from fedgraft.client.data.cohorts.cache import Described
from fedgraft.client.data.cohorts.folders import Found, walk
from fedgraft.client.data.cohorts.labels import LabelJoin, is_labels, read_labels, read_patients
from fedgraft.client.data.cohorts.masks import Frame, Mask, Masks, fitted_spacing
from fedgraft.client.data.cohorts.own_splits import WITHOUT_SPLIT, OwnSplits
from fedgraft.client.data.decoding.ahead import DecodingAhead
from fedgraft.client.data.decoding.dicom.dicom_image import BY_PATIENT, DERIVED_FRAMES
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.readers.opening import open_reader
from fedgraft.client.data.readers.reader import Case, Contents, DecodesAlone
from fedgraft.client.data.readers.subgroups import SubgroupReader
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.patient_ids import odd_ids
from fedgraft.client.data.tables.table import NOBODY
from fedgraft.client.data.tables.targets import (
    LabelReader,
    Target,
)
from fedgraft.client.data.tables.words import TableCell, check_words
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, InputSpec
from fedgraft.common.study.subgroups import Subgroup
from fedgraft.common.study.tasks import AnyTask, Segmentation, Task

NOT_LISTED = "not_listed"


@dataclass
class Scan:
    """What a cohort's files gave: inputs as stored, targets by task, raw patient keys, and all that was odd.

    `masks` are those of tasks that ask for some. `spacings` are the sizes in mm of a stored pixel, 0 if not known.
    `left_out` gives positions in `files_of` with the reason, since names of files may name people; `origins` those that
    the cases are from, or their rows where one file holds all. `facts` counts what the files say of themselves.
    `studies` are raw keys of DICOM studies.
    """

    inputs: list[NDArray[Any]] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    targets: dict[str, list[Target]] = field(default_factory=dict)
    masks: dict[str, list[Mask]] = field(default_factory=dict)
    spacings: list[float] = field(default_factory=list)
    keys: list[Mapping[str, str]] = field(default_factory=list, repr=False)
    """Of every case, by what a labels table may call it."""
    patients: list[str] = field(default_factory=list, repr=False)
    studies: list[str] = field(default_factory=list, repr=False)
    splits: list[str] = field(default_factory=list)
    """Of every case, where the cohort brings its own splits; else none."""
    subgroups: dict[str, list[int]] = field(default_factory=dict)
    """By attribute the position of every case's group, -1 for none."""
    left_out: list[tuple[int, str]] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)
    described: list[Described] = field(default_factory=list)
    """Of every case, what its file says of itself that patients are counted by."""


def files_of(spec: CohortSpec) -> Found:
    """The files of a cohort, in order, and what was passed over on the way to them. DataError as `walk`."""
    if not spec.what.one_file:
        return walk(spec.root)
    try:
        spec.root.stat()
    except OSError as error:
        fix = "Check the path in the site's cohort, `root`, and that this account may look there."
        raise DataError(f"{spec.root}: cannot be read: {error.strerror}.", fix=fix) from None
    return Found([spec.root])


def name_below(path: Path, root: Path) -> str:
    """A file's name relative to `root`; bytes that are no UTF-8, as old archives have them, are spelt out."""
    return path.relative_to(root).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def names_of(spec: CohortSpec) -> list[str]:
    """Names of the files by position; none where one file holds all cases, which are its rows."""
    return [] if spec.what.one_file else [name_below(path, spec.root) for path in files_of(spec).files]


def scan(
    spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec, found: Found, subgroups: Sequence[Subgroup] = ()
) -> Scan:
    """All cases in the files that were found, as the study's input has them, with what was left out by reason."""
    loop = _Loop(spec, tasks, wanted, subgroups)
    loop.done.problems.update(reason for _, reason in found.passed_over)
    loop.take_all(found.files)
    return loop.finish()


def stored(case: Case, wanted: InputSpec, root: Path, *, once: bool = False) -> NDArray[Any]:
    """A case as a cohort stores it: an image (channels, size, size), a row (width,). DataError if it is neither.

    With `once` grey has one channel whatever the study asks for.
    """
    shape = case.values.shape
    if not isinstance(wanted, ImageInput):
        if shape != (wanted.width,):
            raise DataError(
                f"{root}: a case of shape {shape} is no row of the {wanted.width} columns that the study asks for.",
                fix="Have the reader give a number for each.",
            )
        return case.values
    if shape[2:] not in {(), (3,)} or len(shape) < 2:
        raise DataError(
            f"{root}: a case of shape {shape} is no image, and the study asks for images.",
            fix="Have the reader give slices (H, W), or colour (H, W, 3).",
        )
    return (fit_once if once else fit)(case.values, case.geometry.pixel_aspect, wanted)


class _Loop:
    """One scan: what is known while the files go by."""

    def __init__(
        self, spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec, subgroups: Sequence[Subgroup]
    ) -> None:
        masks = {task.name: list[Mask]() for task in tasks if isinstance(task, Segmentation)}
        self.done = Scan(targets={task.name: [] for task in tasks if task.name not in masks}, masks=masks)
        self.done.subgroups = {one.name: [] for one in subgroups}
        self._subgroups = SubgroupReader(spec, subgroups)
        self._spec, self._wanted = spec, wanted
        labels = read_labels(spec, tasks, self.done.problems)
        self._join, self._patients = LabelJoin(labels, tasks), read_patients(spec)
        self._tasks, self._from_folders = tasks, labels is None and spec.what.folder_labels
        self._by_folder: _Folders | None = None
        self._masks = Masks(spec, tasks, wanted) if isinstance(wanted, ImageInput) else None
        self._splits = OwnSplits(spec)
        self._reader = open_reader(spec, tasks, wanted)
        self._blocks = CaseBlocks()

    def take_all(self, paths: Sequence[Path]) -> None:
        """Read all files, in their order; of what cannot be used, note why."""
        reader, todo = self._reader, [(at, path) for at, path in enumerate(paths) if self._is_read(at, path)]
        if not isinstance(reader, DecodesAlone):
            for at, path in todo:
                self._take(at, path, reader.read)
            return
        with DecodingAhead(reader.decode, [path for _, path in todo]) as ahead:
            for at, path in todo:
                self._take(at, path, lambda path, _: reader.contents(path, ahead.of(path)))

    def _is_read(self, at: int, path: Path) -> bool:
        """Whether a file is read: not the labels table, nor what that does not list where it is the list of cases."""
        if is_labels(path, self._spec):
            return False
        try:
            if self._spec.joined_by == "path" and not self._spec.what.one_file:
                self._demand_listed(name_below(path, self._spec.root))
        except UnusableError as unusable:
            self._leave_out(at, unusable)
            return False
        return True

    def _take(self, at: int, path: Path, read: Callable[[Path, str], Contents]) -> None:
        name = name_below(path, self._spec.root)
        try:
            contents = read(path, name)
            self._add(at, name, contents)
        except UnusableError as unusable:
            self._leave_out(at, unusable)
            return
        self.done.problems.update(contents.problems)
        self.done.facts.update(f"{key} {value}" for key, value in contents.facts.items())

    def _leave_out(self, at: int, unusable: UnusableError) -> None:
        self.done.left_out.append((at, unusable.reason))
        self.done.problems[unusable.reason] += 1

    def finish(self) -> Scan:
        """All that was taken, with what is odd about all of it together."""
        self.done.left_out.sort()
        self._splits.finish()
        if self._by_folder is not None:
            self.done.problems.update(self._by_folder.finish())
        self.done.problems.update(self._join.finish())
        self.done.problems.update(self._subgroups.finish())
        self.done.problems.update(self._reader.finish())
        if self._masks is not None:
            self.done.problems.update(self._masks.finish())
        if self._spec.knows_patients and not self._spec.what.one_file:
            self.done.problems.update(odd_ids(self.done.patients))
        return self.done

    def _add(self, at: int, name: str, contents: Contents) -> None:
        """Take in the cases of a file; several images of one key, frames of one file, are joined and counted once."""
        done = self.done
        described = tuple((fact, contents.facts[fact]) for fact in BY_PATIENT if fact in contents.facts)
        known: dict[str, tuple[Mapping[str, Target], str]] = {}
        for number, case in enumerate(contents.cases):
            key = self._key(name, case)
            if not self._spec.what.one_file:  # all frames of a file have one key, so that the first decides
                self._demand_listed(key)
            elif self._spec.cases == "listed" and not self._join.lists(key):
                done.problems[NOT_LISTED] += 1
                continue
            if key not in known or case.row is not None:
                known[key] = self._labels(name, key, case), self._patient(name, case)
                done.problems.update(["no_patient_id"] if not known[key][1] else [])
            targets, patient = known[key]
            split = self._splits.of(name, key, case, patient)
            if split == "":
                done.problems[WITHOUT_SPLIT] += 1
                continue
            done.splits += [] if split is None else [split]
            self._store(case)
            done.origins.append(at if case.row is None else case.row)
            done.keys.append({"path": name, **case.keys})
            done.patients.append(patient or NOBODY)
            if case.study is not None:
                done.studies.append(case.study)
            done.described.append(described)
            for task, value in targets.items():
                done.targets[task].append(value)
            for attribute, group in self._subgroups.of(key, case).items():
                done.subgroups[attribute].append(group)
            if self._masks is not None:
                shape, aspect = case.values.shape[:2], case.geometry.pixel_aspect
                own = None if case.masks is None else self._masks.given(case.masks, aspect)
                sop = "" if DERIVED_FRAMES in contents.problems else case.keys.get("sop", "")
                frame = Frame(number, contents.several, contents.volume, sop)
                for task, mask in (own or self._masks.of(name, shape, aspect, frame)).items():
                    done.masks[task].append(self._blocks.kept(mask))

    def _demand_listed(self, key: str) -> None:
        """UnusableError for what the labels table does not list, where it is the list of the cases."""
        if self._spec.cases == "listed" and not self._join.lists(key):
            raise UnusableError(NOT_LISTED)

    def _store(self, case: Case) -> None:
        self.done.inputs.append(self._blocks.kept(stored(case, self._wanted, self._spec.root, once=True)))
        if not isinstance(self._wanted, ImageInput):
            return
        shape, place = case.values.shape[:2], case.geometry
        width = fitted_shape(shape, place.pixel_aspect, self._wanted)[1]
        self.done.spacings.append(fitted_spacing(place.width_mm, shape[1], width))

    def _key(self, name: str, case: Case) -> str:
        by = self._spec.joined_by
        return case.keys.get(by, name) if by == "path" else case.keys[by]

    def _labels(self, name: str, key: str, case: Case) -> Mapping[str, Target]:
        if case.targets is not None:
            return case.targets
        if not self._from_folders:
            return self._join.of(key)
        self._by_folder = self._by_folder or _Folders(self._spec, self._tasks)
        return self._by_folder.of(case.keys.get("path", name))

    def _patient(self, name: str, case: Case) -> str:
        """Whose a case is; "" if somebody should have said it. Where nobody says, each file is a patient of its own."""
        if case.patient is not None:
            return case.patient
        own = case.keys.get("path", name)
        return own if self._patients is None else self._patients.get(own, "")


class _Folders:
    """Labels by the name of the sub-folder, for the only task whose answers folders can name."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask]) -> None:
        """DataError if there is another task that needs a table."""
        asked = [task for task in tasks if not isinstance(task, Segmentation)]
        if any(not isinstance(task, Task) for task in asked) or len(asked) > 1:
            raise DataError(
                f"{spec.root}: sub-folders can name the classes of one task only.", fix="Give a labels table."
            )
        self._task, self._reader, self._root = (asked[0] if asked else None), LabelReader(spec, tasks), spec.root
        if isinstance(self._task, Task):
            check_words(spec, self._task.name, "", self._task.classes)

    def of(self, name: str) -> Mapping[str, Target]:
        """The label of a file of this name."""
        if self._task is None:
            return {}
        folder = name.split("/", maxsplit=1)[0] if "/" in name else ""
        cell = TableCell(folder, f"the name of a sub-folder of {self._root}")
        return {self._task.name: self._reader.of(self._task, {self._task.name: cell})}

    def finish(self) -> Counter[str]:
        """What is odd. DataError for names that mean nothing."""
        return self._reader.finish()


def stamps(paths: Sequence[Path], root: Path) -> Iterator[tuple[str, int, int, int]]:
    """Relative name, size and times of every file: what tells a cache that something changed.

    The second time is the file system's own. Programs that copy can set the first back, but not that one.
    """
    for path in paths:
        stat = path.stat()
        yield name_below(path, root), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
