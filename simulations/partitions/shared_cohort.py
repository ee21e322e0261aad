"""The cases of a cohort as a partition sees them, and the file that gives a site its part of them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.client.data.cohorts.scan import files_of, name_below
from fedgraft.client.data.decoding.decoder import DecodingLimits, decode
from fedgraft.client.data.kinds import JOIN_KEYS
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import Table, column, read_csv
from fedgraft.common.base.errors import DataError, InputError
from fedgraft.common.base.files import write_atomic

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Shared:
    """Of every case whose it is and its label, in order; and `write`, which gives the chosen cases to a site.

    `write` takes the site's folder and the positions of its cases, and says what its cohort is.
    """

    patients: Sequence[str]
    labels: Sequence[str]
    write: Callable[[Path, Sequence[int]], CohortSpec]

    def by_patient(self) -> dict[str, str]:
        """Each patient's label: the most frequent of its cases', of several the first in order."""
        own: dict[str, Counter[str]] = {}
        for patient, label in zip(self.patients, self.labels, strict=True):
            own.setdefault(patient, Counter())[label] += 1
        return {who: min(counts, key=lambda label: (-counts[label], label)) for who, counts in own.items()}


def open_shared(spec: CohortSpec, name: str | None) -> Shared:
    """The cases of a cohort; `name` is the column with their label, None if nobody names one.

    InputError for a cohort that cannot be shared out so, DataError for a table that cannot be read.
    """
    if spec.kind == "npz":
        return _arrays(spec, name)
    if spec.labels is not None:
        return _labels_table(spec, name)
    if spec.what.one_file and spec.root.suffix.lower() == ".csv":
        return _table(spec, name)
    if spec.what.folder_labels and not spec.what.one_file:
        return _folders(spec, name)
    raise InputError(
        f"partition: a cohort of kind {spec.kind} in {spec.root} cannot be shared out.",
        fix="Give it a labels table, or use a CSV or .npz file.",
    )


def _table(spec: CohortSpec, name: str | None) -> Shared:
    """A CSV file of cases: each site gets a file with its rows."""
    table = read_csv(spec.root)

    def write(folder: Path, rows: Sequence[int]) -> CohortSpec:
        return spec.model_copy(update={"root": _write_rows(folder / "table.csv", table, rows)})

    who = column(table, spec.patient_column, (), "the patients") if spec.patient_column is not None else None
    return Shared(_patients(table, who), _labels(table, name), write)


def _labels_table(spec: CohortSpec, name: str | None) -> Shared:
    """A folder with a labels table: each site gets a table of its cases, and the folder stays where it is."""
    assert spec.labels is not None
    table, join = read_csv(spec.labels), spec.joined_by
    key = column(table, spec.key_column, JOIN_KEYS[join], f"the {join}")
    if join == "patient":
        who = key
    elif spec.patient_column is not None and not spec.what.one_file:
        who = column(table, spec.patient_column, (), "the patients")
    elif spec.what.names_patients:
        who = column(table, None, JOIN_KEYS["patient"], "the patients, who must be at one site each")
    else:
        who = key

    def write(folder: Path, rows: Sequence[int]) -> CohortSpec:
        own = _write_rows(folder / "labels.csv", table, rows)
        return spec.model_copy(update={"labels": own, "cases": "listed"})

    return Shared(_patients(table, who), _labels(table, name), write)


def _folders(spec: CohortSpec, name: str | None) -> Shared:
    """Images in sub-folders by class: each site gets a table that lists its images."""
    if name is not None:
        raise InputError(f"partition: there is no column {name!r}, since the cohort has no labels table.")
    names = [name_below(path, spec.root) for path in files_of(spec).files]
    labels = [one.split("/", maxsplit=1)[0] if "/" in one else "" for one in names]

    def write(folder: Path, rows: Sequence[int]) -> CohortSpec:
        content = _packed(["path", "label"], ([names[at], labels[at]] for at in rows), ",")
        write_atomic(folder / "labels.csv", content, private=True)
        return spec.model_copy(update={"labels": folder / "labels.csv", "cases": "listed"})

    return Shared(names, labels, write)


def _arrays(spec: CohortSpec, name: str | None) -> Shared:
    """A benchmark in one file: each site gets a file with its part of every split."""
    if name is not None:
        raise InputError(f"partition: there is no column {name!r} in {spec.root}; its labels are arrays.")
    kinds = ("images", "labels", "masks", *filter(None, [spec.patient_column]))
    wanted = {"names": [f"{split}_{kind}" for split in _SPLITS for kind in kinds]}
    limits = DecodingLimits(spec.file_seconds, spec.file_gigabytes)
    words, arrays = decode("fedgraft.client.data.decoding.npz:read", spec.root, wanted, limits)
    found: dict[str, Any] = dict(zip(words["names"], arrays, strict=True))
    found |= {key: np.array(text) for key, text in words["texts"].items()}
    rows = [(split, at) for split in _SPLITS for at in range(len(found.get(f"{split}_images", ())))]
    who, label = f"_{spec.patient_column}", "_labels"
    patients = [str(found[f"{split}{who}"][at]) if f"{split}{who}" in found else f"{split}/{at}" for split, at in rows]
    labels = [_as_label(found.get(f"{split}{label}"), at) for split, at in rows]

    def write(folder: Path, chosen: Sequence[int]) -> CohortSpec:
        own = {split: [rows[at][1] for at in chosen if rows[at][0] == split] for split in _SPLITS}
        content = io.BytesIO()
        part = {key: array[own[key.partition("_")[0]]] for key, array in found.items()}
        np.savez_compressed(content, allow_pickle=False, **part)
        write_atomic(folder / "part.npz", content.getvalue(), private=True)
        return spec.model_copy(update={"root": folder / "part.npz"})

    return Shared(patients, labels, write)


def _as_label(array: Any, at: int) -> str:
    return "" if array is None else " ".join(map(str, np.atleast_1d(array[at]).tolist()))


def _patients(table: Table, who: str | None) -> list[str]:
    """Whose each row is; without a column for it each row is somebody, and so are all whose cell is empty together."""
    return [f"row {at}" if who is None else row[who] for at, row in enumerate(table.rows)]


def _labels(table: Table, name: str | None) -> list[str]:
    if name is None:
        return ["" for _ in table.rows]
    column(table, name, (), "the label or the site")
    return [row[name] for row in table.rows]


def _write_rows(path: Path, table: Table, rows: Sequence[int]) -> Path:
    header = list(table.rows[0])
    content = _packed(header, ([table.rows[at][one] for one in header] for at in rows), table.delimiter)
    write_atomic(path, content, private=True)
    return path


def _packed(header: Sequence[str], rows: Any, delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def empty_cells(shared: Shared, source: Path, name: str) -> None:
    """DataError if the column that says whose site a case is of says nothing for some."""
    if empty := sum(not label for label in shared.labels):
        raise DataError(f"{source}: {empty:,} rows have nothing in column {name!r}, so they are of no site.")


def counts(shared: Shared, rows: Sequence[int]) -> Mapping[str, Any]:
    """What a site got: cases, patients, and cases by label."""
    labels = Counter(shared.labels[at] for at in rows)
    found = {"cases": len(rows), "patients": len({shared.patients[at] for at in rows})}
    return found | ({"labels": dict(sorted(labels.items()))} if set(labels) != {""} else {})
