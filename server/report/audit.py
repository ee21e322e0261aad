"""What attacks on a study found, as text to be shown."""

from __future__ import annotations

from dataclasses import dataclass

from fedgraft.server.report.history import (
    Row,
    mapping,
    number,
    sequence,
    text,
)
from fedgraft.server.report.tables import (
    NONE,
    ReportTable,
    TableLine,
    duration,
    whole,
)


@dataclass(frozen=True)
class Audited:
    """The findings, whether all of them hold, and what that is worth."""

    table: ReportTable
    verdict: str
    holds: bool


def audited(found: Row) -> Audited:
    """The content of an `audit.json`; without rows if there was none."""
    rows = [mapping(row) for row in sequence(found.get("findings"))]
    holds = found.get("holds") is True
    lines = tuple(_line(row) for row in rows)
    columns = ("attack", "stage", "verdict", "claim", "found", "bound", "time")
    tested = [row for row in rows if row.get("passed") is not None]
    failed = sum(row.get("passed") is not True for row in tested)
    words = f"{failed} of" if failed else "All"
    words += f" {len(tested)} claims that were tested {'did not hold' if failed else 'held'}"
    accepted = " and all that failed was accepted beforehand" if holds and failed else ""
    patients, seconds = whole(found.get("patients")), duration(number(found.get("seconds")) or 0.0)
    verdict = f"{words}{accepted}: noise of a site with {patients} patients in training, {seconds} of attacks."
    return Audited(ReportTable(columns, lines, words=5), verdict, holds)


def _line(row: Row) -> TableLine:
    passed = row.get("passed")
    failed = "fails, accepted" if row.get("accepted") is True else "fails"
    verdict = "not tested" if passed is None else "holds" if passed is True else failed
    bound = number(row.get("bound"))
    limit = NONE if bound is None else f"{text(row.get('sense'))} {bound:g}"
    words = (text(row.get(key)) or NONE for key in ("claim", "words"))
    cells = (text(row.get("name")), text(row.get("stage")), verdict, *words, limit)
    return TableLine((*cells, duration(number(row.get("seconds")) or 0.0)), "failed" if verdict == "fails" else "")
