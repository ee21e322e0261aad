"""A task's figures on a terminal of eighty columns."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.support import TOO_FEW
from fedgraft.common.study.study import parse_study
from fedgraft.server.cli.figures import survival_table, task_table
from fedgraft.server.rounds.scores import Scores


def a_site(cases: int) -> dict[str, ClassificationSums]:
    rng = np.random.default_rng(cases)
    return {"diagnosis": ClassificationSums.of(rng.normal(size=(cases, 4)), np.arange(cases) % 4)}


def test_no_word_is_cut_and_a_site_with_too_few_cases_says_so() -> None:
    data = {"name": "x", "tasks": [{"name": "diagnosis", "classes": ["a", "b", "c", "d"]}], "method": "fedavg"}
    scores = Scores(parse_study(data, "x"), {"north": a_site(120), "south": a_site(5)})
    written = io.StringIO()
    Console(file=written, width=80).print(task_table("diagnosis", scores.values()["diagnosis"]))
    shown = written.getvalue()
    assert "…" not in shown
    for word in ("diagnosis (test)", "balanced", "accuracy", "AUROC", "by precision"):
        assert word in shown
    south = shown[shown.index("south") : shown.index("macro mean")]
    assert all(word in south for word in TOO_FEW.split())


@pytest.mark.parametrize(
    ("ends", "words"),
    [((0.25, 1.0), ".250–1"), ((80.4554, 170.214), "80.455–170.214"), ((-0.5, 0.0), "-.500–.000"), ((None, 1.0), "")],
)
def test_an_interval_keeps_the_zeros_of_its_numbers(ends: tuple[float | None, float], words: str) -> None:
    """Of a share the leading zero goes; of 170 mm none does."""
    counted = {"stage": "s", "unit": "d", "ends": [1.0]}
    one = {"name": "all", "survival": [0.5], "at_risk": [9.0], "events": [1.0], "median": None}
    table = survival_table(counted | {"curves": [one | {"low": [ends[0]], "high": [ends[1]]}]})
    assert next(iter(table.columns[-1].cells)) == words
