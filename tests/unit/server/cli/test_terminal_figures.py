"""A task's figures on a terminal of eighty columns."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.support import TOO_FEW
from fedgraft.common.study.study import parse_study
from fedgraft.server.cli.figures import task_table
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
