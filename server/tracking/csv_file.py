"""All rounds as one table in the run's folder."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from fedgraft.common.base.files import write_atomic
from fedgraft.common.study.study import Study
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.server.tracking.numbers import numbers
from fedgraft.server.tracking.tracker import Row

_FIRST = ("exchange", "stage", "round", "split")


class CsvTracker:
    """Writes `rounds.csv`, whole after each round: one line an exchange, one column for each number."""

    def begin(self, run: Path, study: Study) -> None:  # noqa: ARG002 - as all trackers
        """From the rounds that are there already."""
        self._run = run
        self._rows: list[Row] = []
        if (run / "history.jsonl").exists():
            self._rows += RunFolder(run).history()

    def round(self, row: Row) -> None:
        """One line more; a round that is done again takes its old line's place."""
        self._rows = [one for one in self._rows if one["exchange"] < row["exchange"]] + [row]
        self._write()

    def end(self, run: Path, result: Row | None) -> None:
        """Nothing is left to do."""

    def _write(self) -> None:
        lines = [{key: row[key] for key in _FIRST} | numbers(row) for row in self._rows]
        text = io.StringIO()
        columns = list(dict.fromkeys(key for line in lines for key in line))
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_atomic(self._run / "rounds.csv", text.getvalue().encode(), private=True)
