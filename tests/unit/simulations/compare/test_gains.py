"""What joining gained each site over training alone: against seeds and patients counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.files import write_json
from fedgraft.common.study.study import Study
from fedgraft.server.report import build_comparison_page
from fedgraft.simulations.compare import command
from fedgraft.simulations.compare.bootstrap import draw_patients
from fedgraft.simulations.compare.measures.answers import MERGED, Answers
from fedgraft.simulations.compare.measures.under_weights import under_weights
from fedgraft.simulations.compare.question import BUILT_IN, Question
from fedgraft.simulations.compare.result import Group, answered
from fedgraft.simulations.compare.running.cells import CellOutcome
from helpers.runs import Page
from helpers.work import MakeStudy

QUESTION = Question(arms=tuple(BUILT_IN[name] for name in ("study", "local", "fedbn")))
SITES = {"better": (1.5, 0.4), "worse": (0.4, 1.5), "alike": (1.0, 1.0)}
"""How well an arm's model tells the classes apart at each site: together, and alone."""


def said(skill: float, seed: int, cases: int = 200) -> Answers:
    """The same patients with the same labels for each seed; how well the model knows them is its own."""
    targets = np.arange(cases) % 2
    noise = np.random.default_rng(1000 * seed + round(100 * skill)).normal(size=(cases, 2))
    return Answers((noise + skill * np.eye(2)[targets]).astype(np.float32), targets, np.arange(cases) // 2)


def groups(study: Study, cases: int = 200) -> list[Group]:
    found = []
    for name in ("study", "local", "fedbn"):
        outcomes = {}
        for seed in range(4):
            own = {site: {"cls": said(skills[name == "local"], seed, cases)} for site, skills in SITES.items()}
            # In the arm alone each site has a model of its own, which is tried at the others too.
            models = dict.fromkeys(SITES, own) if name == "local" else {MERGED: own}
            outcomes[seed, 0] = CellOutcome(models, (), 1.0)
        found.append(Group(name, None, outcomes, study))
    return found


@pytest.fixture(scope="module")
def two_classes(make_study: MakeStudy) -> Study:
    return make_study(tasks=[{"name": "cls", "classes": ["a", "b"]}])


def test_the_gain_of_a_site_is_its_figure_less_that_of_its_own_model(two_classes: Study) -> None:
    result, task = answered(QUESTION, groups(two_classes)), two_classes.tasks[0]
    rows = {row["arm"]: row for row in result["rows"]}
    assert result["alone"] == "local"
    assert rows["local"]["gains"] is None
    for site, (together, alone) in SITES.items():
        found = rows["study"]["gains"][site]
        draws = []
        for seed in range(4):
            one, other = said(together, seed), said(alone, seed)
            weights = draw_patients(one, (seed, 0), site)
            draws.append(under_weights("auroc", task, one, weights) - under_weights("auroc", task, other, weights))
        assert found["value"] == pytest.approx(np.mean([own[0] for own in draws]))
        # Three of four seeds, drawn anew, each with its patients drawn anew, as far as two thousand draws can say.
        rng = np.random.default_rng(1)
        means = [np.mean([draws[s][draw] for s in rng.integers(4, size=3)]) for draw in range(1, 2001)]
        low, high = np.percentile(means, (2.5, 97.5))
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.01)
    verdicts = {site: own["verdict"] for site, own in rows["study"]["gains"].items()}
    assert (verdicts["better"], verdicts["worse"]) == ("better", "worse")
    assert verdicts["alike"] in ("as good within 0.02", "not decided")


def test_nothing_is_said_of_gains_where_nobody_trains_alone_or_too_few_were_tested(two_classes: Study) -> None:
    without = Question(arms=(BUILT_IN["study"], BUILT_IN["fedbn"]))
    both = [one for one in groups(two_classes) if one.arm != "local"]
    assert all(row["gains"] is None for row in answered(without, both)["rows"])
    few = answered(QUESTION, groups(two_classes, cases=8))
    assert all(row["gains"] is None for row in few["rows"])


def test_terminal_and_page_show_who_gained(two_classes: Study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    question = json.loads(json.dumps(answered(QUESTION, groups(two_classes)) | {"scenario": "three"}))
    gain = question["rows"][0]["gains"]["worse"]
    command._show_gains(question)
    shown = capsys.readouterr().out
    assert "What joining gained each site: minus local" in " ".join(shown.split())
    assert f"{gain['value']:+.3f}" in shown
    write_json(tmp_path / "compare.json", {"study": "x", "seeds": 4, "seconds": 1.0, "questions": [question]})
    page = Page(build_comparison_page(tmp_path).read_text())
    assert "What joining gained each site over training alone" in page.text
    assert f"{gain['value']:+.3f}" in "".join(page.cells)
