"""A CSV file whose rows are the cases, with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedgraft.client.data.readers.reader import Case, Contents
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import Table, column, read_csv
from fedgraft.client.data.tables.table import INCOMPLETE, complete, read_table
from fedgraft.client.data.tables.targets import plain
from fedgraft.client.data.tables.words import TableCell
from fedgraft.common.study.inputs import InputSpec, TableInput
from fedgraft.common.study.tasks import AnyTask


class TableReader:
    """Reads a table; see `Reader`."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec) -> None:
        assert isinstance(wanted, TableInput)
        self._spec, self._tasks, self._columns = spec, tasks, wanted

    def read(self, path: Path, name: str) -> Contents:  # noqa: ARG002
        """All rows."""
        table = read_csv(path)
        inputs, targets, patients, problems = read_table(self._spec, self._tasks, self._columns, table)
        used = list(range(len(inputs)))
        if self._spec.complete_cases:
            used = np.flatnonzero(complete(inputs, self._columns)).tolist()
            problems.update(+Counter({INCOMPLETE: len(inputs) - len(used)}))
        splits = _splits(table, self._spec.split_column)

        def cases() -> Iterator[Case]:
            for at in used:
                found = {task: plain(target[at]) for task, target in targets.items()}
                split = splits[at] if splits else None
                yield Case(inputs[at], patient=patients[at], targets=found, row=at, split=split, line=table.lines[at])

        return Contents(cases(), problems=problems)

    def finish(self) -> Counter[str]:
        """All was said by `read`."""
        return Counter()


def _splits(table: Table, name: str | None) -> list[TableCell]:
    """The cells of the column with the splits, if one is named. DataError if it is not there."""
    if name is None:
        return []
    column(table, name, (), "the split")
    return [table.cell(at, row, name) for at, row in enumerate(table.rows)]
