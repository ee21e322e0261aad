"""CSV tables: as a site's data, and as the list of labels that goes with its images."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.cohorts.targets import (
    MISSING,
    Target,
    columns_of,
    stacked,
    target_of,
)
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.tasks import AnyTask

NOBODY = "without a patient id"
"""Cases whose patient is not said cannot be told apart, so they count as one patient: never two splits of one."""

_LARGEST = float(np.finfo(np.float32).max)

Row = Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """Rows of a CSV file by column name, and the line of the file that each ends on.

    Errors name file, line and column, and never show a cell: a wrong column may hold names of patients.
    """

    path: Path
    rows: list[dict[str, str]] = field(repr=False)
    lines: list[int] = field(repr=False)

    def where(self, index: int) -> str:
        """Where a row stands, for messages: "FILE, line NUMBER"."""
        return f"{self.path}, line {self.lines[index]}"


def read_csv(path: Path) -> Table:
    """A CSV file with a header, comma or semicolon. DataError if it cannot be read or rows do not fit."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text.", fix="Save the table as CSV in UTF-8.") from None
    first = text.partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows, lines = [], []
    try:
        for row in reader:
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is no CSV: {error}.") from None
    names = [name.strip() for name in reader.fieldnames or ()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: has two columns {', '.join(map(repr, twice))}.", fix="Rename or remove one of them.")
    if not rows:
        raise DataError(f"{path}: has no rows.")
    for line, row in zip(lines, rows, strict=True):
        if None in row or None in row.values():
            raise DataError(f"{path}: line {line} has more or fewer cells than the header.")
    return Table(path, [{key.strip(): value.strip() for key, value in row.items()} for row in rows], lines)


def column(table: Table, name: str | None, usual: Sequence[str], what: str) -> str:
    """The column that was named, or the first usual one there is. DataError lists those that exist."""
    header = table.rows[0]
    for candidate in (name,) if name else usual:
        if candidate in header:
            return candidate
    wanted = repr(name) if name else f"any of {', '.join(usual)}"
    raise DataError(f"{table.path}: has no column for {what} ({wanted}).", fix=f"It has: {', '.join(header)}.")


def label_columns(table: Table, tasks: Sequence[AnyTask], spec: CohortSpec) -> dict[str, str]:
    """The column of every label, by task, or by TASK.LABEL where a task has several."""
    usual = ("diagnosis", "label") if len(tasks) == 1 else ()
    return {
        key: column(table, spec.label_columns.get(key), (name, *usual), f"the labels of task {key!r}")
        for task in tasks
        for key, name in columns_of(task)
    }


def row_targets(table: Table, tasks: Sequence[AnyTask], spec: CohortSpec) -> list[dict[str, Target]]:
    """By row, the target by task, without masks. DataError names line and column of a value that cannot be one."""
    columns = label_columns(table, tasks, spec)
    rows = []
    for at, row in enumerate(table.rows):
        cells = {key: (row[name], f"{table.where(at)}, column {name!r}") for key, name in columns.items()}
        rows.append({task.name: target_of(task, cells, spec) for task in tasks if columns_of(task)})
    return rows


def read_table(
    spec: CohortSpec, tasks: Sequence[AnyTask], columns: TableInput
) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]], list[str], Counter[str]]:
    """Inputs (N, width) not yet standardised, targets by task, raw patient keys, and problems by reason.

    DataError names file, line and column of a number that is none, and all missing columns.
    """
    table = read_csv(spec.root)
    _need(table, columns)
    if spec.patient_column is not None:
        column(table, spec.patient_column, (), "the patients")
    by_row = row_targets(table, tasks, spec)
    targets = {task.name: stacked(task, [found[task.name] for found in by_row]) for task in tasks}
    problems: Counter[str] = Counter()
    inputs = np.full((len(table.rows), columns.width), np.nan, dtype=np.float32)
    for at, row in enumerate(table.rows):
        inputs[at] = _encode(row, columns, table.where(at), problems)
    labels = set(label_columns(table, tasks, spec).values())
    patients = [_patient(row, spec, labels, problems) for row in table.rows]
    return inputs, targets, patients, problems


def read_inputs(path: Path, columns: TableInput) -> tuple[Table, NDArray[np.float32], Counter[str]]:
    """A table's rows and their inputs (N, width) alone, not yet standardised, and problems by reason.

    DataError as `read_table`.
    """
    table, problems = read_csv(path), Counter[str]()
    _need(table, columns)
    rows = [_encode(row, columns, table.where(at), problems) for at, row in enumerate(table.rows)]
    return table, np.array(rows, dtype=np.float32), problems


def _need(table: Table, columns: TableInput) -> None:
    """DataError that names all columns which are not there."""
    header = table.rows[0]
    if absent := [name for name in (*columns.numeric, *columns.categorical) if name not in header]:
        raise DataError(
            f"{table.path}: has no column {', '.join(map(repr, absent))}.", fix=f"It has: {', '.join(header)}."
        )


def _patient(row: Row, spec: CohortSpec, labels: Collection[str], problems: Counter[str]) -> str:
    """Who a row is about. Without a column for it, what the row says: its number would change when rows are inserted.

    Labels are left out, since they get corrected; equal rows are one patient, so that none is tested on what it saw.
    """
    if spec.patient_column is None:
        return json.dumps([(name, value) for name, value in sorted(row.items()) if name not in labels])
    if not row[spec.patient_column]:
        problems["no_patient_id"] += 1
    return row[spec.patient_column] or NOBODY


def _encode(row: Row, columns: TableInput, where: str, problems: Counter[str]) -> list[float]:
    values = [_number(row[name], f"{where}, column {name!r}", problems) for name in columns.numeric]
    for name, categories in columns.categorical.items():
        value = row[name]
        if value not in categories:
            problems["missing_category" if value.lower() in MISSING else "unknown_category"] += 1
        values += [float(value == category) for category in categories]
    return values


def _number(text: str, where: str, problems: Counter[str]) -> float:
    if text.lower() in MISSING:
        problems["missing_value"] += 1
        return math.nan
    try:
        number = float(text if "_" not in text else "")
    except ValueError:
        raise DataError(f"{where} is no number.", fix="Correct it, or leave the cell empty.") from None
    if not math.isfinite(number) or abs(number) > _LARGEST:
        raise DataError(f"{where} is no finite number.", fix="Correct it, or leave the cell empty.")
    return number
