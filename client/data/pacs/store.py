"""What was pulled, on disk: whole objects alone under their UIDs, and a record for each study of how far it is.

OUT/images/STUDY/SERIES/OBJECT.dcm   what a cohort points at
OUT/studies/STUDY.json               waiting, done or failed, and why; no patient is named
OUT/manifest.csv                     every object of the studies that are done, with its digest
OUT/partial                          what is on its way; empty when nothing is
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from fedgraft.client.data.decoding.dicom.dicom_file import quiet
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.decoding.wall import wall
from fedgraft.client.data.pacs.dicomweb import NotGivenError, is_uid
from fedgraft.common.base.disk import instead_of
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import (
    is_there,
    make_folder,
    open_private,
    read_json,
    sha256_file,
    sync_folder,
    write_atomic,
    write_json,
)
from fedgraft.common.base.locking import try_lock
from fedgraft.common.base.value import Value

UID_TAGS = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
"""All that is read of an object."""
Place = tuple[str, str, str]
"""The UIDs of study, series and object."""


class PulledObject(Value):
    """An object on disk."""

    series: str
    sop: str
    bytes: int
    sha256: str


class StudyRecord(Value):
    """How far a study is; `modality` is the only one that is wanted of it. Objects are listed once all are there."""

    state: Literal["waiting", "done", "failed"] = "waiting"
    why: str = ""
    modality: str = ""
    objects: tuple[PulledObject, ...] = ()


class Store:
    """A folder of pulled objects. One process at a time writes there."""

    def __init__(self, out: Path, object_megabytes: int) -> None:
        self.images, self._records, self._partial = out / "images", out / "studies", out / "partial"
        self._passing = self._partial / "object.dcm"
        self._manifest, self._megabytes = out / "manifest.csv", object_megabytes

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other pulls out; in the end nothing half is left of this or an earlier one. RunError if one works.

        InputError for a folder that holds something else by the names of a pull's files: it would be lost.
        """
        mark = self._partial.parent / ".lock"
        make_folder(mark.parent)
        for own in (self._records, self._partial, self._manifest):
            if is_there(own) and not is_there(mark):
                raise InputError(
                    f"{own}: is there, and is of no pull.", fix="Give --out an empty folder, or a new one."
                )
        with open_private(mark, "ab") as file:
            if not try_lock(file):
                raise RunError(f"{mark.parent}: another pull is at work there.", fix="Wait, or use another.")
            for folder in (self.images, self._records, self._partial):
                make_folder(folder)
            self._passing.unlink(missing_ok=True)
            try:
                yield
            finally:
                self._passing.unlink(missing_ok=True)

    def record(self, study: str) -> StudyRecord | None:
        """What is known of a study; None if it was never asked for."""
        path = self._records / f"{study}.json"
        if not path.is_file():
            return None
        try:
            return StudyRecord.model_validate(read_json(path))
        except ValidationError:
            raise InputError(
                f"{path}: is no record of a study.", fix="Delete it: the study is then looked at anew."
            ) from None

    def note(self, study: str, record: StudyRecord) -> None:
        """Write down how far a study is. What it lists is on the disk by then."""
        of_study = self.images / study
        for folder in [of_study / one for one in {one.series for one in record.objects}] + [of_study, self.images]:
            if record.objects:
                sync_folder(folder)
        write_json(self._records / f"{study}.json", record.model_dump(mode="json"))

    def known(self) -> dict[str, StudyRecord]:
        """All studies that were ever asked for, by UID."""
        names = sorted(path.stem for path in self._records.glob("*.json")) if self._records.is_dir() else []
        found = {name: self.record(name) for name in names if is_uid(name)}
        return {name: record for name, record in found.items() if record is not None}

    def is_whole(self, study: str, modality: str) -> bool:
        """Whether a study was pulled, for the same modality, and all that was is still there."""
        record = self.record(study)
        if record is None or record.state != "done" or record.modality != modality:
            return False
        files = [(self._path((study, one.series, one.sop)), one.bytes) for one in record.objects]
        return all(path.is_file() and path.stat().st_size == size for path, size in files)

    def present(self, place: Place) -> PulledObject | None:
        """An object that is there: what has its name is whole."""
        path = self._path(place)
        if not path.is_file():
            return None
        return PulledObject(series=place[1], sop=place[2], bytes=path.stat().st_size, sha256=sha256_file(path))

    def take(self, place: Place, pieces: Iterable[bytes]) -> Path:
        """Write an object as it comes, all of it, under a passing name. NotGivenError if it is too large or another."""
        passing, size = self._passing, 0
        passing.unlink(missing_ok=True)
        with instead_of(self._path(place)), open_private(passing, "xb") as file:  # through no link to elsewhere
            for piece in pieces:
                size += len(piece)
                if size > self._megabytes * 10**6:
                    file.truncate(0)
                    raise NotGivenError(f"answers with an object of more than {self._megabytes} MB (--object-mb)")
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        _demand(passing, place)
        return passing

    def keep(self, place: Place, passing: Path) -> PulledObject:
        """Give an object that came whole its name."""
        path = self._path(place)
        make_folder(path.parent)
        size, sha256 = passing.stat().st_size, sha256_file(passing)
        passing.replace(path)
        return PulledObject(series=place[1], sop=place[2], bytes=size, sha256=sha256)

    def write_manifest(self) -> None:
        """List every object of the studies that are done; paths are those below `images`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("path", *UID_TAGS, "bytes", "sha256"))
        for study, record in self.known().items():
            for one in record.objects:
                path = self._path((study, one.series, one.sop)).relative_to(self.images)
                writer.writerow((path.as_posix(), study, one.series, one.sop, one.bytes, one.sha256))
        write_atomic(self._manifest, text.getvalue().encode())

    def _path(self, place: Place) -> Path:
        """Where an object lies. The last check before a name of another machine becomes a path of this one."""
        if not all(map(is_uid, place)):
            raise NotGivenError("names an object by what is no UID")
        study, series, sop = place
        return self.images / study / series / f"{sop}.dcm"


def _demand(path: Path, place: Place) -> None:
    """NotGivenError unless the file is a DICOM object that says of itself what it was asked for as."""
    try:
        with quiet(), wall("unreadable"):
            meta = read_file_meta_info(path)
            names = [str(meta.get("MediaStorageSOPInstanceUID", place[2]))]
            if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:  # pydicom would unpack it whole
                wanted: tuple[str, ...] = place[2:]
            else:
                dataset = dcmread(path, stop_before_pixels=True, specific_tags=UID_TAGS)
                names += [str(dataset.get(name) or "") for name in UID_TAGS]
                wanted = (place[2], *place)
            same = tuple(name.strip("\0 ") for name in names) == wanted
    except UnusableError:
        raise NotGivenError("answers with what is no DICOM file") from None
    if not same:
        raise NotGivenError("answers with another object than was asked for: its UIDs differ")
