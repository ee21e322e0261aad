"""From a site's folder to decoded images with their labels: every file is used, or counted with the reason."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.cohorts.batches import fit, fitted_shape
from fedgraft.client.data.cohorts.folders import walk
from fedgraft.client.data.cohorts.masks import Mask, Masks, fitted_spacing
from fedgraft.client.data.decoding.decoder import Limits, read_dicom, read_images
from fedgraft.client.data.decoding.dicom import DicomImage
from fedgraft.client.data.decoding.images import SUFFIXES
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import column, read_csv
from fedgraft.client.data.tables.joins import differences
from fedgraft.client.data.tables.patient_ids import SIMILAR, similar
from fedgraft.client.data.tables.table import NOBODY, check_missing, row_targets
from fedgraft.client.data.tables.targets import (
    LabelReader,
    Target,
    same,
    unknown,
)
from fedgraft.client.data.tables.words import Cell, check_words
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.tasks import AnyTask, Segmentation, Task

_KEYS = {
    "patient": ("PatientID", "patient_id", "patient", "subject"),
    "study": ("StudyInstanceUID", "study_uid", "study"),
    "series": ("SeriesInstanceUID", "series_uid", "series"),
    "sop": ("SOPInstanceUID", "sop_uid", "sop"),
    "path": ("path", "file", "filename", "image"),
}
"""Usual names of the column that a labels table is joined by."""


@dataclass
class Scan:
    """What a folder gave: images as stored, targets by task, raw patient keys, and all that was left out or odd.

    `masks` are those of tasks that ask for some. `spacings` are the sizes in mm of a stored pixel, 0 if not known.
    `left_out` gives positions in `files` with the reason, since names of files may name people; `origins` those that
    the images are from. `facts` counts what the files say of themselves. `studies` are raw keys of DICOM studies.
    """

    images: list[NDArray[np.int16]] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    targets: dict[str, list[Target]] = field(default_factory=dict)
    masks: dict[str, list[Mask]] = field(default_factory=dict)
    spacings: list[float] = field(default_factory=list)
    patients: list[str] = field(default_factory=list, repr=False)
    studies: list[str] = field(default_factory=list, repr=False)
    left_out: list[tuple[int, str]] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)


Labels = Mapping[str, Mapping[str, Target]]
"""Targets by task, by key of the join."""


def name_below(path: Path, root: Path) -> str:
    """A file's name relative to `root`; bytes that are no UTF-8, as old archives have them, are spelt out."""
    return path.relative_to(root).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_labels(spec: CohortSpec, tasks: Sequence[AnyTask]) -> Labels | None:
    """The labels table, by key; None if there is none. DataError if two rows of one key disagree."""
    if spec.labels is None:
        return None
    join = "path" if spec.kind == "images" else spec.join
    table = read_csv(spec.labels)
    check_missing(table, spec)
    key_column = column(table, spec.key_column, _KEYS[join], f"the {join}")
    labels: dict[str, dict[str, Target]] = {}
    for at, found in enumerate(row_targets(table, tasks, spec)):
        cell = table.rows[at][key_column]
        key = Path(cell).as_posix() if join == "path" else cell
        if not all(same(labels.setdefault(key, found)[task], own) for task, own in found.items()):
            raise DataError(f"{table.where(at)}: an earlier line has the same {join} with another label.")
    return labels


def scan_dicom(spec: CohortSpec, tasks: Sequence[AnyTask], size: ImageInput) -> Scan:
    """The images below a folder of DICOM files, with labels and what was left out by reason."""
    labels, scan, seen = read_labels(spec, tasks), _empty(tasks), _Seen()
    masks, join = Masks(spec, tasks, size), _Join(labels, tasks)
    limits = Limits(spec.file_seconds, spec.file_gigabytes)
    for at, path in enumerate(_all_files(spec, scan)):
        if spec.labels is not None and path.resolve() == spec.labels.resolve():
            continue
        name = name_below(path, spec.root)
        try:
            image = read_dicom(path, spec.window, spec.frames, spec.accept, limits)
        except UnusableError as unusable:
            _leave_out(scan, at, unusable.reason)
            continue
        patient = image.keys["patient"]
        if seen.again(patient, image):
            _leave_out(scan, at, "duplicate")
            continue
        key = name if spec.join == "path" else image.keys[spec.join]
        found = join.of(key)
        for frame in image.frames:
            shape = frame.shape[:2]
            scan.images.append(fit(frame, image.pixel_aspect, size))
            scan.spacings.append(
                fitted_spacing(image.width_mm, shape[1], fitted_shape(shape, image.pixel_aspect, size)[1])
            )
            scan.origins.append(at)
            scan.patients.append(patient or NOBODY)
            scan.studies.append(image.keys["study"])
            _label(scan, found, masks.of(name, shape, image.pixel_aspect, len(image.frames)))
        scan.facts.update(f"{key} {value}" for key, value in image.facts.items())
        scan.problems.update(image.notes)
        if not patient:
            scan.problems["no_patient_id"] += 1
    scan.problems.update(join.finish())
    seen.finish(spec, scan)
    scan.problems.update(masks.finish())
    _count_similar(scan)
    return scan


class _Seen:
    """Images by their SOP instance UID. The same pixels under one patient are a copy; other pixels are another image.

    Not of another patient's: whoever else is there must not count.
    """

    def __init__(self) -> None:
        self._pixels: dict[str, set[bytes]] = {}
        self._own: set[tuple[str, str, bytes]] = set()
        self._files: Counter[str] = Counter()

    def again(self, patient: str, image: DicomImage) -> bool:
        """Whether this patient's image of that UID and these pixels was there before."""
        if not (sop := image.keys["sop"]):
            return False
        digest = hashlib.blake2b(digest_size=16)
        for frame in image.frames:
            digest.update(repr(frame.shape).encode())
            digest.update(np.ascontiguousarray(frame).data)
        pixels = digest.digest()
        if (patient, sop, pixels) in self._own:
            return True
        self._own.add((patient, sop, pixels))
        self._pixels.setdefault(sop, set()).add(pixels)
        self._files[sop] += 1
        return False

    def finish(self, spec: CohortSpec, scan: Scan) -> None:
        """Count images that share their UID with other pixels. DataError if labels go by that UID."""
        shared = sum(self._files[sop] for sop, pixels in self._pixels.items() if len(pixels) > 1)
        if not shared:
            return
        if spec.labels is not None and spec.join == "sop":
            raise DataError(
                f"{spec.root}: {shared} images with other pixels share a SOPInstanceUID, so that it does not say which "
                "of them a label is of.",
                fix="Join by path, or have the UIDs mended; some de-identifiers write the same one everywhere.",
            )
        scan.problems["same_uid_other_pixels"] += shared


def scan_images(spec: CohortSpec, tasks: Sequence[AnyTask], size: ImageInput) -> Scan:
    """Read a folder of ordinary images: labels from the table, or from the name of the sub-folder."""
    labels, scan, masks = read_labels(spec, tasks), _empty(tasks), Masks(spec, tasks, size)
    by_folder, reader = (_by_folder(spec, tasks) if labels is None else None), LabelReader(spec, tasks)
    patients, join = _patients(spec), _Join(labels, tasks)
    limits = Limits(spec.file_seconds, spec.file_gigabytes)
    for at, path in enumerate(_all_files(spec, scan)):
        name = name_below(path, spec.root)
        if path.suffix.lower() not in SUFFIXES:
            if path.suffix.lower() != ".csv":
                _leave_out(scan, at, "not_an_image")
            continue
        try:
            image = read_images(path, spec.frames, limits)
        except UnusableError as unusable:
            _leave_out(scan, at, unusable.reason)
            continue
        if labels is None:
            folder = name.split("/")[0] if "/" in name else ""
            cell = Cell(folder, f"the name of a sub-folder of {spec.root}")
            found: Mapping[str, Target] = (
                {by_folder.name: reader.of(by_folder, {by_folder.name: cell})} if by_folder is not None else {}
            )
        else:
            found = join.of(name)
        patient = name if patients is None else patients.get(name, "")
        if not patient:
            scan.problems["no_patient_id"] += 1
        scan.problems.update(image.notes)
        for frame in image.frames:
            scan.images.append(fit(frame, 1.0, size))
            scan.spacings.append(0.0)
            scan.origins.append(at)
            scan.patients.append(patient or NOBODY)
            _label(scan, found, masks.of(name, frame.shape[:2], 1.0, len(image.frames)))
    reader.finish()
    scan.problems.update(join.finish())
    scan.problems.update(masks.finish())
    if patients is not None:
        _count_similar(scan)
    return scan


def _by_folder(spec: CohortSpec, tasks: Sequence[AnyTask]) -> Task | None:
    """The only task whose answers the sub-folders can name; DataError if there is another that needs a table."""
    asked = [task for task in tasks if not isinstance(task, Segmentation)]
    if not asked:
        return None
    if len(asked) == 1 and isinstance(asked[0], Task):
        check_words(spec, asked[0].name, "", asked[0].classes)
        return asked[0]
    raise DataError(f"{spec.root}: sub-folders can name the classes of one task only.", fix="Give a labels table.")


def _label(scan: Scan, found: Mapping[str, Target], masks: Mapping[str, Mask]) -> None:
    for task, value in found.items():
        scan.targets[task].append(value)
    for task, mask in masks.items():
        scan.masks[task].append(mask)


def _patients(spec: CohortSpec) -> Mapping[str, str] | None:
    """The patient of every file, if the labels table says; None if every file is its own patient.

    DataError if two rows of one file disagree.
    """
    if spec.patient_column is None or spec.labels is None:
        return None
    table = read_csv(spec.labels)
    key = column(table, spec.key_column, _KEYS["path"], "the path")
    patient = column(table, spec.patient_column, (), "the patients")
    patients: dict[str, str] = {}
    for at, row in enumerate(table.rows):
        if patients.setdefault(Path(row[key]).as_posix(), row[patient]) != row[patient]:
            raise DataError(f"{table.where(at)}: an earlier line has the same path with another patient.")
    return patients


def _empty(tasks: Sequence[AnyTask]) -> Scan:
    masks = {task.name: list[Mask]() for task in tasks if isinstance(task, Segmentation)}
    return Scan(targets={task.name: [] for task in tasks if task.name not in masks}, masks=masks)


def _leave_out(scan: Scan, at: int, reason: str) -> None:
    scan.left_out.append((at, reason))
    scan.problems[reason] += 1


def _all_files(spec: CohortSpec, scan: Scan) -> list[Path]:
    """The files of the cohort; what was passed over on the way to them is counted."""
    found = walk(spec.root)
    scan.problems.update(reason for _, reason in found.passed_over)
    return found.files


class _Join:
    """Rows of the labels table by key: those that met a file, and files that met none."""

    def __init__(self, labels: Labels | None, tasks: Sequence[AnyTask]) -> None:
        self._labels = labels
        self._nothing = {task.name: unknown(task) for task in tasks if not isinstance(task, Segmentation)}
        self._used = set[str]()
        self._alone: Counter[str] = Counter()

    def of(self, key: str) -> Mapping[str, Target]:
        """The targets of a file with this key; all unknown if the table has no row of it."""
        if self._labels is not None and key and key in self._labels:
            self._used.add(key)
            return self._labels[key]
        self._alone[key] += 1
        return self._nothing

    def finish(self) -> Counter[str]:
        """How many files had no row, how many rows no file, and by what their keys differ if by little."""
        if self._labels is None:
            return Counter()
        rows = [key for key in self._labels if key not in self._used]
        counts = Counter({"no_label_row": self._alone.total(), "label_without_file": len(rows)})
        return +(counts + differences(self._alone, rows))


def _count_similar(scan: Scan) -> None:
    if alike := similar(scan.patients):
        scan.problems[SIMILAR] += alike


def stamps(paths: Sequence[Path], root: Path) -> Iterator[tuple[str, int, int, int]]:
    """Relative name, size and times of every file: what tells a cache that something changed.

    The second time is the file system's own. Programs that copy can set the first back, but not that one.
    """
    for path in paths:
        stat = path.stat()
        yield name_below(path, root), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
