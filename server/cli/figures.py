"""A task's figures on the terminal, each with what it rests on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fedgraft.common.base.console.terminal import figure
from fedgraft.common.metrics.support import TOO_FEW
from fedgraft.common.metrics.table import title

_LEADING, _ONE = re.compile(r"(?<!\d)0\."), re.compile(r"^1\.000$")
"""Of a share's digits the first says nothing; 130.4 is another thing than 13.4."""


def task_table(task: str, values: Mapping[str, Any]) -> Table:
    """Sites by the metrics that are shown first, with positives and negatives and the first metric's interval."""
    keys = list(values["macro"])
    table = Table()
    for at, name in enumerate((f"{task} (test)", "cases", "+ / −", *map(title, keys), "95 %")):
        # A name in two lines is not found again, and a word that is cut is not read.
        table.add_column(name, no_wrap=at == 0 or name == "95 %", min_width=max(map(len, name.split())))
    supports, intervals = values["support"], values["intervals"]
    for site, row in values["sites"].items():
        table.add_row(site, *_cells(row, supports["sites"][site], intervals["sites"][site], keys))
    table.add_section()
    means = [("macro mean", values["macro_intervals"]), ("by precision", values["macro_by_precision"])]
    for name, found in means:
        if name == "macro mean" or any(found.values()):
            cells = [values["macro"][key] if name == "macro mean" else (found[key] or {}).get("value") for key in keys]
            first = found[keys[0]] or {}
            table.add_row(name, "", "", *map(figure, cells), _ends((first.get("low"), first.get("high"))))
    table.add_row("all cases", *_cells(values["pooled"], supports["pooled"], intervals["pooled"], keys))
    return table


def survival_table(counted: Mapping[str, Any]) -> Table:
    """Kaplan-Meier curves of one stage, a line for each, with what is left at the last end that anybody reached."""
    table = Table()
    unit, last = counted["unit"], 0
    for name in (counted["stage"], "at risk", "events", f"median ({unit})", f"until ({unit})", "left", "95 %"):
        table.add_column(name, no_wrap=name in (counted["stage"], "95 %"), min_width=max(map(len, name.split())))
    for one in counted["curves"]:
        known = [at for at, left in enumerate(one["survival"]) if left is not None]
        if not known:
            table.add_row(one["name"], "0")
            continue
        last = known[-1]
        cells = (one["at_risk"][0], sum(one["events"]), one["median"], counted["ends"][last])
        said = ["\u2013" if value is None else f"{value:.6g}" for value in cells]
        table.add_row(one["name"], *said, figure(one["survival"][last]), _ends((one["low"][last], one["high"][last])))
    return table


def hazard_table(regression: Mapping[str, Any]) -> Table:
    """A Cox regression, a line for each column, with its hazard ratio."""
    table = Table()
    for name in (regression["stage"], "coefficient", "error", "hazard ratio", "95 %"):
        table.add_column(name, no_wrap=name in (regression["stage"], "95 %"), min_width=max(map(len, name.split())))
    for one in regression["columns"]:
        said = (f"{one[key]:.4g}" for key in ("coefficient", "error", "ratio"))
        table.add_row(one["name"], *said, f"{one['low']:.4g}–{one['high']:.4g}")
    settled = "" if regression["settled"] else "; it has not settled: more rounds"
    table.caption = f"{regression['events']:g} events{settled}"
    return table


def at_point(task: str, point: Mapping[str, Any]) -> str:
    """An operating point in one line, with what it gives of all test cases."""
    said = f"{task}: {point['name']} from a probability of {point['probability']:.3g} on, by {point['rule']}"
    if (own := point["pooled"]) is None:
        return f"{said}; the sites' policies let out no counts at it"
    names = {"recall": "recall", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}
    return f"{said}: {', '.join(f'{name} {figure(own[key])}' for key, name in names.items())} on all test cases"


def _cells(
    row: Mapping[str, Any], support: Mapping[str, Any], intervals: Mapping[str, Sequence[float]], keys: Sequence[str]
) -> list[str]:
    cases = [str(int(row["n"])), _sides(support)]
    if not support["enough"]:
        return [*cases, TOO_FEW, *("" for _ in keys)]
    return [*cases, *(figure(row[key]) for key in keys), _ends(intervals.get(keys[0], (None, None)))]


def _sides(support: Mapping[str, Any]) -> str:
    positives, negatives = support["positives"], support["negatives"]
    if len(positives) == 1:
        return f"{positives[0]} / {negatives[0]}"
    return f"{min(positives)} +" if positives else ""  # of the rarest class or label; all of them are in the report


def _ends(interval: Sequence[float | None]) -> str:
    low, high = interval
    if low is None or high is None:
        return ""
    return "–".join(_LEADING.sub(".", _ONE.sub("1", f"{end:.3f}")) for end in (low, high))
