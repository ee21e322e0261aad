"""A `site check` report as it may be given to others: exact counts of a hospital's patients are not in it.

Whoever knows all but one patient could find that one in an exact count, in a line that is a note for one file alone, or
in the price of a study, which follows from the number of patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedgraft.client.preflight.report import Level, Report

STEP = 10
"""Counts are rounded down to a multiple of this; what has fewer is not told from what has none."""
_OF_MACHINES = frozenset({"environment", "connection"})
"""Parts of the check that look at no patient."""


def shareable(report: Report) -> dict[str, Any]:
    """The report as plain values: per line its name, whether it fails, what to do, and coarse counts.

    Parts about machines keep everything. Of all others descriptions are left out, since they tell exact counts;
    figures that are no counts, such as a baseline's accuracy; and how long a part took. A note looks like a fine line.
    """
    content = report.content()
    content["seconds"] = {part: seconds for part, seconds in content["seconds"].items() if part in _OF_MACHINES}
    content["lines"] = [line if line["part"] in _OF_MACHINES else _coarse_line(line) for line in content["lines"]]
    return content


def _coarse_line(line: Mapping[str, Any]) -> dict[str, Any]:
    fails = line["level"] == Level.FAILS.value
    level = line["level"] if fails or line["level"] == Level.SKIPPED.value else Level.FINE.value
    figures = {name: coarse for name, value in line["figures"].items() if (coarse := _coarse(value)) is not None}
    kept = {name: line[name] for name in ("part", "name")}
    return kept | {"level": level, "fix": line["fix"] if fails else "", "figures": figures}


def _coarse(value: Any) -> Any:
    """A count rounded down, words as they are, and None for what is not shared; of counts by word only the large."""
    match value:
        case bool():
            return None
        case int():
            return value // STEP * STEP if value >= STEP else f"fewer than {STEP}"
        case str():
            return value
        case Mapping():
            known = {word: count for word, count in value.items() if isinstance(count, int) and count >= STEP}
            return {word: _coarse(count) for word, count in known.items()}
        case _:
            return None
