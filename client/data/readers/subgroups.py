"""To which group of an attribute each case belongs: by a column of the site's own table, or by a tag of its file.

Only attributes that the site's policy allows are ever asked for here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from fedgraft.client.data.kinds import JOIN_KEYS
from fedgraft.client.data.readers.features import feature_table
from fedgraft.client.data.readers.reader import Case
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import Table, column, read_csv
from fedgraft.client.data.tables.words import TableCell, finite, is_missing, meant
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.subgroups import NO_GROUP, Subgroup

IN_NO_GROUP = "in_no_subgroup"
"""Cases whose value is known and makes none of the groups."""

_AGE = re.compile(r"(\d{1,3})([DWMY])")
_YEARS = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}


class SubgroupReader:
    """The groups of a cohort's cases, by attribute; made anew for every scan."""

    def __init__(self, spec: CohortSpec, asked: Sequence[Subgroup]) -> None:
        """DataError for an attribute that nothing at the site says."""
        self._spec, self._asked = spec, asked
        self._in_none = 0
        self._cells = _Cells.of(spec, [one for one in asked if one.name not in spec.subgroup_tags])
        for one in asked:
            for word, value in spec.subgroup_map.get(one.name, {}).items():
                if value and one.values and meant(value, one.values) is None:
                    raise DataError(
                        f"subgroup_map of {one.name!r}: {word!r} becomes {value!r}, which is no group of the policy.",
                        fix=f"Groups are {', '.join(one.values)}, and '' for what is not known.",
                    )

    def of(self, key: str, case: Case) -> dict[str, int]:
        """By attribute the position of a case's group, -1 if it is in none or that is not known.

        `key` is what the labels table is joined by.
        """
        return {one.name: self._group(one, self._cell(one, key, case)) for one in self._asked}

    def finish(self) -> Counter[str]:
        """How many values made no group."""
        return +Counter({IN_NO_GROUP: self._in_none})

    def _cell(self, one: Subgroup, key: str, case: Case) -> TableCell:
        if (tag := self._spec.subgroup_tags.get(one.name)) is None:
            return self._cells.of_case(one.name, key, case)
        text = case.tags.get(tag, "")
        age = _AGE.fullmatch(text.strip())
        return TableCell(f"{int(age[1]) / _YEARS[age[2]]:g}" if age and one.bands else text, "", tag)

    def _group(self, one: Subgroup, cell: TableCell) -> int:
        words = self._spec.subgroup_map.get(one.name, {})
        entry = meant(cell.text, words)
        known = cell if entry is None else cell._replace(text=words[entry])
        if one.values and (value := meant(known.text, one.values)) is not None:
            return one.values.index(value)
        if is_missing(known, self._spec):
            return NO_GROUP
        number = finite(known)
        group = one.band(number) if one.bands and number is not None else NO_GROUP
        self._in_none += group == NO_GROUP
        return group


@dataclass(frozen=True)
class _Cells:
    """Cells of the columns by attribute, of a table with a row for each case or for each key."""

    table: Table | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] | None = None
    """By key of the labels table; None where the file that holds the cases says it, row by row."""

    @classmethod
    def of(cls, spec: CohortSpec, asked: Sequence[Subgroup]) -> _Cells:
        if not asked:
            return cls()
        table, keyed = _table(spec, asked[0].name)
        columns = {}
        for one in asked:
            name = spec.subgroup_columns.get(one.name, one.name)
            if name not in table.rows[0]:
                raise DataError(
                    f"{table.path}: has no column {name!r} for the subgroup {one.name!r}, which the policy allows.",
                    fix=f"Name it as `subgroup_columns: {{{one.name}: COLUMN}}` of the cohort, or take it out of "
                    f"`subgroups` of the policy. The table has: {', '.join(table.rows[0])}.",
                )
            columns[one.name] = name
        for first, second in pairwise(sorted(columns, key=columns.__getitem__)):
            if columns[first] == columns[second]:
                raise DataError(
                    f"subgroup_columns: {first!r} and {second!r} are both of the column {columns[first]!r}, and two "
                    "sets of groups together tell of the cases between their ends.",
                    fix="Let the policy allow one of them alone.",
                )
        return cls(table, columns, _rows(table, spec, list(columns.values())) if keyed else None)

    def of_case(self, name: str, key: str, case: Case) -> TableCell:
        """The cell that says it of a case; an empty one where the table does not list the case."""
        at = case.row if self.rows is None else self.rows.get(key)
        if self.table is None or at is None:
            return TableCell("", "")
        return self.table.cell(at, self.table.rows[at], self.columns[name])


def _table(spec: CohortSpec, name: str) -> tuple[Table, bool]:
    """The table that says it, and whether its rows are found by a key. DataError if there is none."""
    if spec.labels is not None:
        return read_csv(spec.labels), True
    if spec.kind == "table":
        return read_csv(spec.root), False
    if spec.kind == "features":
        return feature_table(spec.root, spec), False
    tags = " or a tag of the files as `subgroup_tags`" if "subgroup_tags" in spec.what.keys else ""
    raise DataError(
        f"{spec.root}: nothing says the subgroup {name!r} of a case, which the policy allows.",
        fix=f"Give the cohort a table as `labels`{tags}, or take {name} out of `subgroups` of the policy.",
    )


def _rows(table: Table, spec: CohortSpec, columns: Sequence[str]) -> dict[str, int]:
    """The first row of each key. DataError if a later one says otherwise."""
    join = spec.joined_by
    name = column(table, spec.key_column, JOIN_KEYS[join], f"the {join}")
    rows: dict[str, int] = {}
    for at, row in enumerate(table.rows):
        first = table.rows[rows.setdefault(Path(row[name]).as_posix() if join == "path" else row[name], at)]
        if any(first[one] != row[one] for one in columns):
            raise DataError(f"{table.where(at)}: an earlier line has the same {join} in another subgroup.")
    return rows
