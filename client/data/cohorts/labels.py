"""The labels table that goes with images: its rows by key, whose each file is, and what met nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedgraft.client.data.kinds import JOIN_KEYS
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import column, read_csv
from fedgraft.client.data.tables.joins import differences
from fedgraft.client.data.tables.table import check_missing, row_targets
from fedgraft.client.data.tables.targets import Target, same, unknown
from fedgraft.client.data.tables.words import Faults, is_missing
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.tasks import AnyTask, Segmentation

Labels = Mapping[str, Mapping[str, Target]]
"""Targets by task, by key of the join."""


def read_labels(spec: CohortSpec, tasks: Sequence[AnyTask], problems: Counter[str]) -> Labels | None:
    """The labels table, by key; None if there is none. What is odd is counted in `problems`.

    DataError names all that does not fit; or two rows of one key that disagree.
    """
    if spec.labels is None:
        return None
    join = spec.joined_by
    table, faults = read_csv(spec.labels), Faults()
    with faults.look():
        check_missing(table, spec)
    with faults.look():
        key_column = column(table, spec.key_column, JOIN_KEYS[join], f"the {join}")
    with faults.look():
        if spec.patient_column is not None and not spec.what.one_file:
            column(table, spec.patient_column, (), "the patients")
    with faults.look():
        rows = row_targets(table, tasks, spec, problems)
    faults.refuse()
    labels: dict[str, dict[str, Target]] = {}
    for at, found in enumerate(rows):
        cell = table.rows[at][key_column]
        key = Path(cell).as_posix() if join == "path" else cell
        if not all(same(labels.setdefault(key, found)[task], own) for task, own in found.items()):
            raise DataError(f"{table.where(at)}: an earlier line has the same {join} with another label.")
    return labels


def read_patients(spec: CohortSpec) -> Mapping[str, str] | None:
    """The patient of every file, if the labels table says; None if every file is its own patient.

    DataError if two rows of one file disagree.
    """
    if spec.patient_column is None or spec.labels is None or spec.what.one_file:
        return None
    table = read_csv(spec.labels)
    key = column(table, spec.key_column, JOIN_KEYS["path"], "the path")
    patient = column(table, spec.patient_column, (), "the patients")
    patients: dict[str, str] = {}
    for at, row in enumerate(table.rows):
        cell = table.cell(at, row, patient)
        name = "" if is_missing(cell, spec) else cell.text
        if patients.setdefault(Path(row[key]).as_posix(), name) != name:
            raise DataError(f"{table.where(at)}: an earlier line has the same path with another patient.")
    return patients


def is_labels(path: Path, spec: CohortSpec) -> bool:
    """Whether a file among the images is the labels table."""
    return spec.labels is not None and path.name == spec.labels.name and path.samefile(spec.labels)


class LabelJoin:
    """Rows of the labels table by key: those that met a file, and files that met none."""

    def __init__(self, labels: Labels | None, tasks: Sequence[AnyTask]) -> None:
        self._labels = labels
        self._nothing = {task.name: unknown(task) for task in tasks if not isinstance(task, Segmentation)}
        self._used = set[str]()
        self._alone: Counter[str] = Counter()

    def lists(self, key: str) -> bool:
        """Whether the table has a row of this key."""
        return self._labels is not None and bool(key) and key in self._labels

    def of(self, key: str) -> Mapping[str, Target]:
        """The targets of a file with this key; all unknown if the table has no row of it."""
        if self._labels is not None and self.lists(key):
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
