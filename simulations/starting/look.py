"""What lies in a folder: which files, of which kind, with which labels; and whether its folders are hospitals."""

from __future__ import annotations

import os
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from fedgraft.client.data.cohorts.folders import walk
from fedgraft.client.data.cohorts.scan import name_below
from fedgraft.client.data.decoding.decoder import read_dicom, read_images
from fedgraft.client.data.decoding.images import SUFFIXES
from fedgraft.client.data.decoding.nifti import SUFFIXES as NIFTI
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.kinds import JOIN_KEYS, Join
from fedgraft.client.data.tables.csv_tables import Table, read_csv
from fedgraft.common.base.errors import DataError, InputError
from fedgraft.simulations.starting.columns import Columns, guess

_SAMPLE = 20
_LONGEST = 28
"""Of a hospital's name, which has 32 letters at most, with the number that tells two apart."""
_MAGIC, _MAGIC_AT = b"DICM", 128


@dataclass
class FoundPlace:
    """A folder, or a file, that may be a cohort. `cohort` is what a scenario would say of it; None if nothing fits."""

    path: Path
    kind: str = ""
    cohort: dict[str, Any] = field(default_factory=dict)
    columns: Columns | None = None
    classes: tuple[str, ...] = ()
    """Names of sub-folders, where they are the labels."""
    sample: list[Path] = field(default_factory=list)
    """Some of its files, for sizes and colours."""
    images: int = 0
    """How many files of its kind it has, where these are images."""
    said: list[str] = field(default_factory=list)
    """What was guessed, and what was left out."""


def places(folder: Path) -> dict[str, FoundPlace]:
    """The hospitals by name, if each sub-folder is one, or else the folder itself as the only one, by the name ""."""
    if folder.is_file():
        return {"": look(folder)}
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if len(below) > 1 and not _is_one_site(folder, below):
        names = _site_names([path.name for path in below])
        found = {name: look(path) for name, path in zip(names, below, strict=True)}
        usable = {name: place for name, place in found.items() if place.kind}
        if len(usable) > 1 and len({place.kind for place in usable.values()}) == 1:
            for name in found.keys() - usable.keys():
                usable[min(usable)].said.append(f"left out: the folder {name}, in which nothing was found")
            return usable
    return _tables_alike(folder) or {"": look(folder)}


def _tables_alike(folder: Path) -> dict[str, FoundPlace]:
    """Tables with the same columns, one for each hospital, where there is nothing else; else none."""
    files = [path for path in walk(folder).files if _kind_of(path) in {"csv", "dicom", "images", "nifti", "npz"}]
    if len(files) < 2 or any(_kind_of(path) != "csv" for path in files):
        return {}
    try:
        headers = {tuple(read_csv(path).rows[0]) for path in files}
    except DataError:
        return {}
    if len(headers) != 1:
        return {}
    names = _site_names([path.stem for path in files])
    return {name: look(path) for name, path in zip(names, files, strict=True)}


def _site_names(called: Sequence[str]) -> list[str]:
    """Names that sites can have, in order, for whatever folders and files are called; each once."""
    names: list[str] = []
    for word in called:
        ascii_word = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_word).strip("_-")[:_LONGEST].rstrip("_-") or "site"
        taken = {name.lower() for name in names}
        tries = (f"{plain}{'' if number == 1 else f'_{number}'}" for number in count(1))
        names.append(next(name for name in tries if name.lower() not in taken))
    return names


def _is_one_site(folder: Path, below: list[Path]) -> bool:
    """Whether a folder's own files, or folders that hold images and nothing else, say that it is a single cohort."""
    own = [path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in {".csv", ".npz"}]
    plain = all(_kind_of(path) in {"images", "nifti"} for one in below for path in one.iterdir() if path.is_file())
    nested = any(path.is_dir() for one in below for path in one.iterdir())
    return bool(own) or (plain and not nested and any(path.is_file() for one in below for path in one.iterdir()))


def look(path: Path) -> FoundPlace:
    """What a folder or a file is, taken as one cohort."""
    place = FoundPlace(path)
    files = [path] if path.is_file() else walk(path).files
    kinds: dict[str, list[Path]] = {}
    for one in files:
        kinds.setdefault(_kind_of(one), []).append(one)
    tables, counts = kinds.get("csv", []), Counter({kind: len(found) for kind, found in kinds.items()})
    main = max(("dicom", "images", "nifti", "npz"), key=lambda kind: counts[kind])
    if counts[main]:
        place.kind, place.sample = main, kinds[main][:: max(1, len(kinds[main]) // _SAMPLE)]
        place.images = len(kinds[main])
        _with_files(place, path, kinds[main], tables)
    elif tables:
        _table(place, tables)
    for kind, found in kinds.items():
        if kind != place.kind and not (kind == "csv" and place.kind):
            place.said.append(f"left out: {len(found):,} files of kind {kind}")
    return place


def _kind_of(path: Path) -> str:
    name, suffix = path.name.lower(), path.suffix.lower()
    if name.endswith(NIFTI):
        return "nifti"
    if suffix in SUFFIXES:
        return "images"
    if suffix in {".dcm", ".dicom", ".ima"} or _is_dicom(path):
        return "dicom"
    if suffix == ".npz" and _is_benchmark(path):
        return "npz"
    return "csv" if suffix == ".csv" else f"{suffix or 'without a suffix'}"


def _is_dicom(path: Path) -> bool:
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC
    except OSError:
        return False


def _is_benchmark(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as packed:
            return "train_images.npy" in packed.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _with_files(place: FoundPlace, root: Path, files: list[Path], tables: list[Path]) -> None:
    """Images of some kind: by a table that names them, or by the sub-folders that they lie in."""
    if place.kind == "npz":
        place.cohort = {"kind": "npz", "root": files[0]}
        place.said += [f"left out: {path.name}, a second benchmark" for path in files[1:]]
        return
    place.cohort = {"kind": place.kind, "root": root}
    for path in tables:
        if _joined(place, root, files, path):
            place.said += [f"left out: the table {other.name}" for other in tables if other != path]
            return
    place.said += [f"left out: the table {path.name}, whose keys are none of the files'" for path in tables]
    folders = sorted({name.split("/", maxsplit=1)[0] for path in files if "/" in (name := name_below(path, root))})
    if len(folders) > 1 and place.kind != "dicom":
        place.classes = tuple(folders)
        place.said.append(f"labels are the names of sub-folders: {', '.join(folders)}")


def _joined(place: FoundPlace, root: Path, files: list[Path], path: Path) -> bool:
    """Whether a table lists the files, and then by which column; the cohort gets it as its labels.

    Its paths may count from a folder further down, in which all files are.
    """
    try:
        table = read_csv(path)
    except DataError:
        return False
    common = Path(os.path.commonpath([one.parent for one in files]))
    below = [base for base in (root, *reversed(common.parents), common) if base.is_relative_to(root)]
    by: list[tuple[int, Join, str, Path]] = []
    for base in dict.fromkeys(below):
        for join, wanted in _keys_of(place, base, place.sample).items():
            for name in table.rows[0]:
                there = {row[name] for row in table.rows}
                by.append((sum(key in there for key in wanted), join, name, base))
    hits, join, column, base = max(by, key=lambda one: one[0], default=(0, "path", "", root))
    if not hits:
        return False
    place.columns = guess(table, {column} if join == "path" else ())
    place.cohort |= {"root": base, "labels": path, "key_column": column}
    place.cohort |= {"join": join} if place.kind == "dicom" else {}
    if place.columns.patient and place.kind != "dicom":
        place.cohort["patient_column"] = place.columns.patient
    place.said.append(f"labels are in {path.name}, joined by {join} in column {column!r}")
    return True


def _keys_of(place: FoundPlace, root: Path, sample: list[Path]) -> dict[Join, list[str]]:
    """What a table may call these files."""
    found: dict[Join, list[str]] = {"path": [name_below(path, root) for path in sample]}
    for path in sample[:5] if place.kind == "dicom" else []:
        try:
            keys = read_dicom(path, None, "middle").keys
        except UnusableError:
            continue
        for join in JOIN_KEYS:
            if join != "path" and keys.get(join):
                found.setdefault(join, []).append(keys[join])
    return found


def _table(place: FoundPlace, tables: list[Path]) -> None:
    path = max(tables, key=lambda one: one.stat().st_size)
    place.kind, place.columns = "table", guess(read_csv(path))
    place.cohort = {"kind": "table", "root": path}
    if place.columns.patient is not None:
        place.cohort["patient_column"] = place.columns.patient
    place.said += [f"left out: the table {other.name}" for other in tables if other != path]
    if place.columns.unused:
        place.said.append(f"left out: the columns {', '.join(place.columns.unused)}")


def size_of(place: FoundPlace) -> tuple[int, bool]:
    """The shorter side in pixels of some of its images, and whether any has colour."""
    sides, colour = [], False
    for path in place.sample[:5]:
        try:
            frame = (read_images if place.kind == "images" else read_dicom_frames)(path, "middle").frames[0]
        except UnusableError:
            continue
        sides.append(min(frame.shape[:2]))
        colour |= frame.ndim == 3 and bool((frame[..., :1] != frame).any())
    return min(sides, default=64), colour


def read_dicom_frames(path: Path, frames: Any) -> Any:
    """A DICOM file as `read_images` reads others."""
    return read_dicom(path, None, frames)


def demand_something(found: dict[str, FoundPlace], folder: Path) -> None:
    """InputError if there is nothing that could be a cohort."""
    if not any(place.kind for place in found.values()):
        raise InputError(
            f"{folder}: holds no DICOM, NIfTI, image, .npz or .csv files.",
            fix="docs/how_to/data.md says what is read.",
        )


def table_of(place: FoundPlace) -> Table | None:
    """The table with its labels, if there is one."""
    path = place.cohort.get("labels") or (place.cohort.get("root") if place.kind == "table" else None)
    return read_csv(path) if path is not None else None
