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
from fedgraft.client.data.cohorts.labels import Join, is_labels, read_labels, read_patients
from fedgraft.client.data.cohorts.masks import Mask, Masks, fitted_spacing
from fedgraft.client.data.decoding.decoder import Limits, read_dicom, read_images
from fedgraft.client.data.decoding.dicom.dicom_file import DicomImage
from fedgraft.client.data.decoding.images import SUFFIXES
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.patient_ids import odd_ids
from fedgraft.client.data.tables.table import NOBODY
from fedgraft.client.data.tables.targets import (
    LabelReader,
    Target,
)
from fedgraft.client.data.tables.words import Cell, check_words, is_missing
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.tasks import AnyTask, Segmentation, Task

NO_DICOM_INSIDE, _DICOM_SUFFIXES = "no_dicom_inside", frozenset({".dcm", ".dicom", ".ima"})


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


def name_below(path: Path, root: Path) -> str:
    """A file's name relative to `root`; bytes that are no UTF-8, as old archives have them, are spelt out."""
    return path.relative_to(root).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def scan_dicom(spec: CohortSpec, tasks: Sequence[AnyTask], size: ImageInput) -> Scan:
    """The images below a folder of DICOM files, with labels and what was left out by reason."""
    scan, seen = _empty(tasks), _Seen()
    labels = read_labels(spec, tasks, scan.problems)
    masks, join = Masks(spec, tasks, size), Join(labels, tasks)
    limits = Limits(spec.file_seconds, spec.file_gigabytes)
    for at, path in enumerate(_all_files(spec, scan)):
        if is_labels(path, spec):
            continue
        name = name_below(path, spec.root)
        try:
            image = read_dicom(path, spec.window, spec.frames, spec.accept, limits)
        except UnusableError as unusable:
            stranger = unusable.reason == "not_dicom" and path.suffix.lower() in _DICOM_SUFFIXES
            _leave_out(scan, at, NO_DICOM_INSIDE if stranger else unusable.reason)
            continue
        patient = image.keys["patient"]
        if is_missing(Cell(patient, ""), spec):
            patient = ""
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
    scan.problems.update(odd_ids(scan.patients))
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
    scan, masks = _empty(tasks), Masks(spec, tasks, size)
    labels = read_labels(spec, tasks, scan.problems)
    by_folder, reader = (_by_folder(spec, tasks) if labels is None else None), LabelReader(spec, tasks)
    patients, join = read_patients(spec), Join(labels, tasks)
    limits = Limits(spec.file_seconds, spec.file_gigabytes)
    for at, path in enumerate(_all_files(spec, scan)):
        name = name_below(path, spec.root)
        if is_labels(path, spec):
            continue
        if path.suffix.lower() not in SUFFIXES:
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
    scan.problems.update(reader.finish())
    scan.problems.update(join.finish())
    scan.problems.update(masks.finish())
    if patients is not None:
        scan.problems.update(odd_ids(scan.patients))
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


def stamps(paths: Sequence[Path], root: Path) -> Iterator[tuple[str, int, int, int]]:
    """Relative name, size and times of every file: what tells a cache that something changed.

    The second time is the file system's own. Programs that copy can set the first back, but not that one.
    """
    for path in paths:
        stat = path.stat()
        yield name_below(path, root), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
