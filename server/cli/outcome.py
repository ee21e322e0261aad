"""How a command ends that carried out a run, deployed or simulated: what came out, and whether that was enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fedgraft.common.base.errors import IncompleteError
from fedgraft.common.base.terminal import OUT, figure, say
from fedgraft.common.metrics.metric_names import title

Row = dict[str, Any]


def show_result(run: Path, result: Row) -> None:
    """The status, who took part, the final figures of every task, and where the report is."""
    say(f"{result['status']}: {result['headline']}")
    for task, values in result["metrics"].items():
        keys = list(values["macro"])
        table = Table(f"{task} (test)", "cases", *map(title, keys))
        for site, row in values["sites"].items():
            table.add_row(site, *_cells(row, keys))
        table.add_section()
        table.add_row("macro mean", "", *(figure(values["macro"][key]) for key in keys))
        table.add_row("all cases", *_cells(values["pooled"], keys))
        OUT.print(table)
    say(f"Report: {run / 'report.html'}")


def demand_enough(run: Path, result: Row) -> None:
    """IncompleteError unless all sites took part to the end, or as few did as the study says will do."""
    if not result["enough"]:
        raise IncompleteError(
            f"{run} has not completed: {result['headline']}.",
            fix="A study that is content with fewer says so: rounds.min_sites, and rounds.quorum, a share.",
        )


def _cells(row: Row, keys: Sequence[str]) -> list[str]:
    return [str(int(row["n"])), *(figure(row[key]) for key in keys)]
