"""What the rows of a CSV table mean: as a site's data, and as the list of labels that goes with its images."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import LIKE_THOUSANDS, Table, column, read_csv
from fedgraft.client.data.tables.patient_ids import odd_ids
from fedgraft.client.data.tables.targets import (
    LabelReader,
    Target,
    columns_of,
    names_of,
    stacked,
)
from fedgraft.client.data.tables.words import (
    Faults,
    TableCell,
    UnknownWords,
    check_missing_words,
    check_words,
    finite,
    is_missing,
    meant,
    refuse,
)
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression

_ALIKE = 0.8
"""From which likeness on, of 1, two columns' names may mean the same."""
INCOMPLETE = "incomplete_rows"
NOBODY = "without a patient id"
"""Cases whose patient is not said cannot be told apart, so they count as one patient: never two splits of one."""


def label_columns(table: Table, tasks: Sequence[AnyTask], spec: CohortSpec) -> dict[str, str]:
    """The column of every label, by task, or by TASK.LABEL where a task has several."""
    usual = ("diagnosis", "label") if len(tasks) == 1 else ()
    together = {task.name: name for task in tasks if (name := _one_column(table, task, spec)) is not None}
    return {task: column(table, name, (), f"the labels of task {task!r}") for task, name in together.items()} | {
        key: column(table, spec.label_columns.get(key), (name, *usual), f"the labels of task {key!r}")
        for task in tasks
        if task.name not in together
        for key, name in columns_of(task)
    }


def _one_column(table: Table, task: AnyTask, spec: CohortSpec) -> str | None:
    """The column with all labels of a case, as words with a separator between them; None if each has its own."""
    if not isinstance(task, Multilabel):
        return None
    own = dict(columns_of(task))
    if task.name in spec.label_columns:
        return spec.label_columns[task.name]
    apart = any(key in spec.label_columns or name in table.rows[0] for key, name in own.items())
    return task.name if task.name in table.rows[0] and not apart else None


def check_missing(table: Table, spec: CohortSpec) -> None:
    """DataError for a column of `missing_values` that the table has not: nobody would read its words."""
    for name in spec.missing_values:
        column(table, name, (), "`missing_values`")


def row_targets(
    table: Table, tasks: Sequence[AnyTask], spec: CohortSpec, problems: Counter[str]
) -> list[dict[str, Target]]:
    """By row, the target by task, without masks; what is odd is counted in `problems`.

    DataError names all words that cannot be one, with line and column.
    """
    columns = label_columns(table, tasks, spec)
    for task in tasks:
        for key in (task.name, *(key for key, _ in columns_of(task))):
            names = names_of(task, key)
            if names and key in columns:
                check_words(spec, key, columns[key], names)
    reader, rows = LabelReader(spec, tasks), []
    for at, row in enumerate(table.rows):
        cells = {key: table.cell(at, row, name) for key, name in columns.items()}
        rows.append({task.name: reader.of(task, cells) for task in tasks if columns_of(task)})
    problems.update(reader.finish())
    values = [columns[task.name] for task in tasks if isinstance(task, Regression)]
    problems.update(+Counter({LIKE_THOUSANDS: table.like_thousands(values)}))
    return rows


def read_table(
    spec: CohortSpec, tasks: Sequence[AnyTask], columns: TableInput, table: Table | None = None
) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]], list[str], Counter[str]]:
    """Inputs (N, width) not yet standardised, targets by task, raw patient keys, and problems by reason.

    `table` is the file's, where it has been read already. DataError names all missing columns; else file, line and
    column of all words that mean nothing.
    """
    table, faults = table or read_csv(spec.root), Faults()
    with faults.look():
        if spec.patient_column is not None:
            column(table, spec.patient_column, (), "the patients")
    with faults.look():
        check_missing(table, spec)
    with faults.look():
        _need(table, columns)
    with faults.look():
        labels = set(label_columns(table, tasks, spec).values())
        _no_label_among(table, columns, labels)
    faults.refuse()
    problems = Counter[str]()
    with faults.look():
        inputs = _encoded(table, spec, columns, problems)
    with faults.look():
        by_row = row_targets(table, tasks, spec, problems)
    faults.refuse()
    labels |= {spec.split_column} if spec.split_column is not None else set()
    targets = {task.name: stacked(task, [found[task.name] for found in by_row]) for task in tasks}
    patients = [_patient(table, at, spec, labels, problems) for at in range(len(table.rows))]
    if spec.patient_column is not None:
        problems.update(odd_ids(patients))
    return inputs, targets, patients, problems


def complete(inputs: NDArray[np.float32], columns: TableInput) -> NDArray[np.bool_]:
    """Which rows (N,) have a value in every column."""
    known, at = ~np.isnan(inputs).any(axis=1), len(columns.numeric)
    for categories in columns.categorical.values():
        known &= inputs[:, at : at + len(categories)].any(axis=1)
        at += len(categories)
    return np.asarray(known)


def _encoded(table: Table, spec: CohortSpec, columns: TableInput, problems: Counter[str]) -> NDArray[np.float32]:
    """Inputs (N, width) of all rows; what is odd is counted in `problems`. DataError names all words that are none."""
    for name, categories in columns.categorical.items():
        check_missing_words(spec, name, name, categories)
    inputs = np.full((len(table.rows), columns.width), np.nan, dtype=np.float32)
    encoder = _Encoder(spec, columns, problems)
    for at, row in enumerate(table.rows):
        inputs[at] = encoder.encode({name: table.cell(at, row, name) for name in encoder.names if name in row})
    encoder.finish()
    problems.update(+Counter({LIKE_THOUSANDS: table.like_thousands(columns.numeric)}))
    return inputs


def _need(table: Table, columns: TableInput) -> None:
    """DataError that names the absent columns, if they are half of all or more, or may stand there by another name.

    A hospital that never measures something has no column for it, and each of its values is a missing one.
    """
    header, wanted = table.rows[0], (*columns.numeric, *columns.categorical)
    absent = [name for name in wanted if name not in header]
    others = {_plain(name): name for name in header if name not in wanted}
    alike = {name: others[near[0]] for name in absent if (near := get_close_matches(_plain(name), others, 1, _ALIKE))}
    if 2 * len(absent) >= len(wanted) or alike:
        meant = "".join(f" Is {other!r} the column {name!r}? Then call it so." for name, other in alike.items())
        raise DataError(
            f"{table.path}: has no column {', '.join(map(repr, absent))}.", fix=f"It has: {', '.join(header)}.{meant}"
        )


def _no_label_among(table: Table, columns: TableInput, labels: Collection[str]) -> None:
    """DataError for a covariate that is the label here: what it explains stays in the columns, the answer among it."""
    if leaks := [name for name in columns.covariate_spans if name in labels]:
        raise DataError(
            f"{table.path}: the column {', '.join(map(repr, leaks))} holds the label, and columns are to be "
            "harmonised by it as a covariate: they would tell the answer.",
            fix="Say in label_columns where the label is, or ask the coordinator to leave the covariate out.",
        )


def _plain(name: str) -> str:
    """A column's name without what people write differently."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _patient(table: Table, at: int, spec: CohortSpec, labels: Collection[str], problems: Counter[str]) -> str:
    """Who a row is about. Without a column for it, what the row says: its number would change when rows are inserted.

    Labels are left out, since they get corrected; equal rows are one patient, so that none is tested on what it saw.
    """
    row = table.rows[at]
    if spec.patient_column is None:
        return json.dumps([(name, value) for name, value in sorted(row.items()) if name not in labels])
    cell = table.cell(at, row, spec.patient_column)
    if is_missing(cell, spec):
        problems["no_patient_id"] += 1
        return NOBODY
    return cell.text


class _Encoder:
    """Rows of cells to numbers, NaN or no category where a value is missing; `finish` refuses what is no number."""

    def __init__(self, spec: CohortSpec, columns: TableInput, problems: Counter[str]) -> None:
        self._spec, self._columns, self._problems = spec, columns, problems
        self.names = (*columns.numeric, *columns.categorical)
        self._unknown = {name: UnknownWords(name, "is no number", ()) for name in columns.numeric}

    def encode(self, cells: Mapping[str, TableCell]) -> list[float]:
        values = [self._number(cells.get(name)) for name in self._columns.numeric]
        for name, categories in self._columns.categorical.items():
            if name not in cells:
                self._problems["missing_category"] += 1
                values += [0.0] * len(categories)
                continue
            found = meant(cells[name].text, categories)
            if found is None:
                missing = is_missing(cells[name], self._spec)
                self._problems["missing_category" if missing else "unknown_category"] += 1
            values += [float(found == category) for category in categories]
        return values

    def finish(self) -> None:
        refuse(self._unknown.values())

    def _number(self, cell: TableCell | None) -> float:
        if cell is None or is_missing(cell, self._spec):
            self._problems["missing_value"] += 1
            return math.nan
        number = finite(cell)
        if number is None:
            self._unknown[cell.column].cells.append(cell)
            return math.nan
        self._unknown[cell.column].read += 1
        return number
