"""How a command ends that carried out a run, deployed or simulated: what came out, and whether that was enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedgraft.common.base.console.terminal import OUT, say
from fedgraft.common.base.errors import IncompleteError
from fedgraft.common.models.cluster_models import FOLDER, in_words
from fedgraft.server.cli.figures import at_point, hazard_table, survival_table, task_table

Row = dict[str, Any]


def show_result(run: Path, result: Row) -> None:
    """The status, who took part, remarks, the final figures of every task, and where the report is."""
    say(f"{result['status']}: {result['headline']}")
    for remark in result["remarks"]:
        say(remark)
    if result["clusters"]:
        say(f"Clusters of sites, each with its model in {run / FOLDER}: {in_words(result['clusters']['sites'])}")
    for counted in result["survival"]:
        OUT.print(survival_table(counted))
    for regression in result["hazards"]:
        OUT.print(hazard_table(regression))
    for task, values in result["metrics"].items():
        OUT.print(task_table(task, values))
        for point in result["operating_points"].get(task, []):
            say(at_point(task, point))
    say(f"Report: {run / 'report.html'}")


def demand_enough(run: Path, result: Row) -> None:
    """IncompleteError unless all sites took part to the end, or as few did as the study says will do."""
    if not result["enough"]:
        raise IncompleteError(
            f"{run} has not completed: {result['headline']}.",
            fix="A study that is content with fewer says so: rounds.min_sites, and rounds.quorum, a share.",
        )
