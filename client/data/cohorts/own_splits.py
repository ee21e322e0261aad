"""The split that a cohort brings with it: a column, a file, or the arrays of a benchmark. It is used as it is.

Nobody deals these patients out anew, and nobody may be on two sides: both would make results too good, without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedgraft.client.data.kinds import JOIN_KEYS, Join
from fedgraft.client.data.readers.reader import Case
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import Table, column, read_csv
from fedgraft.client.data.tables.table import NOBODY
from fedgraft.client.data.tables.words import TableCell, is_missing
from fedgraft.common.base.errors import DataError

WITHOUT_SPLIT = "without_split"
_USUAL = ("split", "partition", "subset", "fold")
_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "development", "tuning"),
    "test": ("test", "testing", "tst"),
}
"""What people call the three."""
_MEANT = {word: split for split, words in _WORDS.items() for word in words}


class OwnSplits:
    """The splits of a cohort's cases, where it brings some; tells who is on two sides."""

    def __init__(self, spec: CohortSpec) -> None:
        """DataError if the file or the column cannot be read, or two rows of one key disagree."""
        self._spec = spec
        self._by, self._cells = _read(spec)
        self._of: dict[str, tuple[str, str]] = {}
        self._torn: list[tuple[str, str]] = []
        self._people: set[str] = set()
        self._strange: list[TableCell] = []

    def of(self, name: str, key: str, case: Case, patient: str) -> str | None:
        """The split of a case: "" if the cohort gives it none, None if the cohort brings no splits at all."""
        if case.split is None and self._cells is None:
            return None
        keys = {"key": key, "path": case.keys.get("path", name), "patient": patient}
        cell = case.split or (self._cells or {}).get(keys[self._by])
        if cell is None or is_missing(cell, self._spec):
            return ""
        split = _MEANT.get(cell.text.strip().casefold())
        if split is None:
            self._strange.append(cell)
            return ""
        before, where = self._of.setdefault(patient or NOBODY, (split, cell.where))
        if before != split:
            self._torn.append((where, cell.where))
            self._people.add(patient or NOBODY)
        return split

    def finish(self) -> None:
        """DataError for words that are no split, and for patients with cases in two."""
        if self._strange:
            more = f", and {len(self._strange) - 1:,} more" if len(self._strange) > 1 else ""
            raise DataError(
                f"{self._strange[0].where}: is no split{more}.",
                fix="Write train, val or test, or leave the cell empty for cases that are not to be used.",
            )
        if self._torn:
            first, second = self._torn[0]
            nobody = " Cases without a patient id count as one patient's." if NOBODY in self._people else ""
            raise DataError(
                f"{len(self._people):,} patients have cases in two of the cohort's own splits, for instance by "
                f"{first}, and {second}.{nobody}",
                fix="Put all cases of a patient into one split: what is trained on must not be tested on.",
            )


def _read(spec: CohortSpec) -> tuple[str, Mapping[str, TableCell] | None]:
    """By what cells are found (patient, path, or key of the labels table), and those; None if nothing is named."""
    if spec.split_file is not None:
        table = read_csv(spec.split_file)
        by: Join = "path" if any(name in table.rows[0] for name in JOIN_KEYS["path"]) else "patient"
        keys = column(table, None, JOIN_KEYS[by], "the files or the patients")
        return by, _cells(table, keys, column(table, spec.split_column, _USUAL, "the split"), path=by == "path")
    if spec.split_column is None or spec.labels is None:
        return "key", None
    table, join = read_csv(spec.labels), spec.joined_by
    keys = column(table, spec.key_column, JOIN_KEYS[join], f"the {join}")
    return "key", _cells(table, keys, column(table, spec.split_column, (), "the split"), path=join == "path")


def _cells(table: Table, keys: str, splits: str, *, path: bool) -> Mapping[str, TableCell]:
    cells: dict[str, TableCell] = {}
    for at, row in enumerate(table.rows):
        key, cell = Path(row[keys]).as_posix() if path else row[keys], table.cell(at, row, splits)
        if cells.setdefault(key, cell).text != cell.text:
            raise DataError(f"{cell.where}: an earlier line has the same key with another split.")
    return cells
