"""A CSV file whose rows are the cases, with their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedgraft.client.data.readers.reader import Case, Contents
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.table import read_table
from fedgraft.client.data.tables.targets import plain
from fedgraft.common.study.inputs import InputSpec, TableInput
from fedgraft.common.study.tasks import AnyTask


class TableReader:
    """Reads a table; see `Reader`."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec) -> None:
        assert isinstance(wanted, TableInput)
        self._spec, self._tasks, self._columns = spec, tasks, wanted

    def read(self, path: Path, name: str) -> Contents:  # noqa: ARG002
        """All rows."""
        inputs, targets, patients, problems = read_table(self._spec, self._tasks, self._columns)

        def cases() -> Iterator[Case]:
            for at, patient in enumerate(patients):
                found = {task: plain(target[at]) for task, target in targets.items()}
                yield Case(inputs[at], patient=patient, targets=found, row=at)

        return Contents(cases(), problems=problems)

    def finish(self) -> Counter[str]:
        """All was said by `read`."""
        return Counter()
