"""One file with the features that an extractor has made of every case: .npz, .safetensors, .parquet or .csv.

What stands beside the features is a table: keys, patients, splits and labels, as in a CSV file of cases.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fedgraft.client.data.decoding.decoder import DecodingLimits, decode
from fedgraft.client.data.decoding.feature_files import EXTRACTOR, numbered
from fedgraft.client.data.decoding.unusable import FaultyError, UnusableError
from fedgraft.client.data.kinds import JOIN_KEYS
from fedgraft.client.data.readers.reader import Case, Contents
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import Table, column, read_csv
from fedgraft.client.data.tables.table import row_targets
from fedgraft.client.data.tables.targets import Target, columns_of
from fedgraft.client.data.tables.words import finite, is_missing
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import Extractor, FeaturesInput, InputSpec
from fedgraft.common.study.tasks import AnyTask

SUFFIXES = (".npz", ".safetensors", ".parquet", ".csv")


@dataclass(frozen=True)
class FeatureFile:
    """Features (N, width), what else stands in their rows, and what made them, if the file says it."""

    features: NDArray[np.float32]
    table: Table = field(repr=False)
    extractor: Extractor | None


class FeatureReader:
    """Reads such a file; see `Reader`."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec) -> None:
        assert isinstance(wanted, FeaturesInput)
        self._spec, self._tasks, self._wanted = spec, tasks, wanted

    def read(self, path: Path, name: str) -> Contents:  # noqa: ARG002
        """All rows. DataError unless they were made as the study asks."""
        found = read_features(path, self._spec, self._wanted)
        table, problems = found.table, Counter[str]()
        targets = self._targets(table, problems)
        header = table.rows[0]
        keys = {join: next((one for one in usual if one in header), None) for join, usual in JOIN_KEYS.items()}
        for one in filter(None, (self._spec.patient_column, self._spec.split_column)):
            column(table, one, (), "the patients or the splits")

        def cases() -> Iterator[Case]:
            for at, row in enumerate(table.rows):
                own: dict[str, str] = {join: row[one] for join, one in keys.items() if one is not None}
                known: dict[str, str] = {join: own.get(join, "") for join in JOIN_KEYS}
                yield Case(
                    found.features[at],
                    known | {"path": own.get("path", f"row {at}")},
                    self._patient(table, at, found.features[at], own.get("path")),
                    targets=None if targets is None else targets[at],
                    split=table.cell(at, row, self._spec.split_column) if self._spec.split_column else None,
                    row=at,
                    line=table.lines[at],
                )

        return Contents(cases(), problems=problems)

    def finish(self) -> Counter[str]:
        """All was said by `read`."""
        return Counter()

    def _targets(self, table: Table, problems: Counter[str]) -> list[dict[str, Target]] | None:
        """Labels that stand in the file itself, where no table of labels is named and there are such columns."""
        usual = [
            *((task.name, task.name) for task in self._tasks),
            *(pair for task in self._tasks for pair in columns_of(task)),
        ]
        names = {self._spec.label_columns.get(key, name) for key, name in usual}
        names |= {"diagnosis", "label"} if len(self._tasks) == 1 else set()
        if self._spec.labels is not None or not names & table.rows[0].keys():
            return None
        return row_targets(table, self._tasks, self._spec, problems)

    def _patient(self, table: Table, at: int, features: NDArray[np.float32], path: str | None) -> str | None:
        """Whose a row is; without a column for it, or a path, what its features are."""
        if self._spec.patient_column is not None:
            cell = table.cell(at, table.rows[at], self._spec.patient_column)
            return "" if is_missing(cell, self._spec) else cell.text
        return None if path is not None else hashlib.blake2b(features.tobytes(), digest_size=16).hexdigest()


def feature_table(path: Path, spec: CohortSpec) -> Table:
    """What stands beside the features of a file, row by row. DataError if it cannot be read."""
    return (_csv(path, spec) if path.suffix.lower() == ".csv" else _decoded(path, spec)).table


def read_features(path: Path, spec: CohortSpec, wanted: FeaturesInput) -> FeatureFile:
    """A file of features, as many and made in the way that a study asks for. DataError that says what differs."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: is no file of features.", fix=f"They are {', '.join(SUFFIXES)}.")
    found = _csv(path, spec) if path.suffix.lower() == ".csv" else _decoded(path, spec)
    if found.features.shape[1] != wanted.count:
        there = found.features.shape[1]
        raise DataError(f"{path}: has {there} features a case, and the study asks for {wanted.count}.")
    _check_extractor(path, found.extractor, spec.extractor, wanted.extractor)
    return found


def _check_extractor(path: Path, said: Extractor | None, named: Extractor | None, wanted: Extractor) -> None:
    """DataError unless the features were made by the extractor that all sites must share."""
    if said is not None and named is not None and (keys := said.differs(named)):
        raise DataError(
            f"{path}: says otherwise than `extractor` of the cohort what made its features: {', '.join(keys)} differ.",
            fix="Correct the cohort; what the file says was written when they were made.",
        )
    own = said or named
    if own is None:
        raise DataError(
            f"{path}: does not say what made its features, and features of different extractors do not mix.",
            fix="Write name, weights (SHA-256) and preprocessing as `extractor` of the cohort, or make the file with "
            "`fedgraft site embed`.",
        )
    if keys := own.differs(wanted):
        shown = "; ".join(f"{key} is {getattr(own, key)!r}, not {getattr(wanted, key)!r}" for key in keys)
        raise DataError(
            f"{path}: its features were made otherwise than the study asks: {shown}.",
            fix="Make them anew with the study's extractor (`fedgraft site embed`).",
        )


def _decoded(path: Path, spec: CohortSpec) -> FeatureFile:
    limits = DecodingLimits(spec.file_seconds, spec.file_gigabytes)
    try:
        words, (features,) = decode(
            "fedgraft.client.data.decoding.feature_files:read", path, {"columns": spec.columns}, limits
        )
    except UnusableError as unusable:
        raise DataError(f"{path}: cannot be used as features ({unusable.reason}).") from None
    columns = words["columns"]
    rows = [{name: str(column[at]).strip() for name, column in columns.items()} for at in range(len(features))]
    if not rows:
        raise DataError(f"{path}: has no rows.")
    table = Table(path, rows, list(range(len(rows))), unit="row")
    return FeatureFile(features.copy(), table, _extractor(path, words["extractor"]))


def _extractor(path: Path, text: str | None) -> Extractor | None:
    if text is None:
        return None
    try:
        return Extractor.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        raise DataError(
            f"{path}: what it says of its {EXTRACTOR} is not name, weights (SHA-256) and preprocessing."
        ) from None


def _csv(path: Path, spec: CohortSpec) -> FeatureFile:
    table = read_csv(path)
    try:
        names = numbered(list(table.rows[0]), spec.columns)
    except FaultyError as faulty:
        raise DataError(f"{path}: {faulty.fault}.", fix="Name them as `columns` of the cohort.") from None
    features = np.zeros((len(table.rows), len(names)), np.float32)
    for at, row in enumerate(table.rows):
        for place, name in enumerate(names):
            cell = table.cell(at, row, name)
            if (number := finite(cell)) is None:
                raise DataError(f"{cell.where}: is no finite number.")
            features[at, place] = number
    rest = [{name: cell for name, cell in row.items() if name not in set(names)} for row in table.rows]
    return FeatureFile(features, Table(path, rest, table.lines, table.delimiter, table.decimal_comma), None)
