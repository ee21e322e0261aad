"""A C-way k-shot evaluation per site: what it says is what fitting by hand says, and what lacks is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.training.few_shot import (
    Given,
    fitted,
    only,
    shots,
)
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import RunError
from fedgraft.common.base.seeds import derive
from fedgraft.common.closed_form.ood import OodModel
from fedgraft.common.models.weights import load_weights
from fedgraft.common.study.methods.fit import Fit
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task
from fedgraft.simulations.compare.question import Arm, Question
from fedgraft.simulations.compare.result import answered, groups, lines
from fedgraft.simulations.compare.running.cells import (
    Cell,
    cells,
    outcome,
    run,
)
from fedgraft.simulations.compare.running.models import answers_of
from fedgraft.simulations.engines.run import Hospitals, prepare, simulated_cohort
from helpers.simulated import simulate
from helpers.work import CPU, MakeStudy

ARMS = (
    Arm(name="tuned", who="new_site", fit=Fit(steps=3)),
    Arm(name="ridge", who="new_site", fit=Fit(how="ridge")),
    Arm(name="scratch", who="nobody", fit=Fit(steps=3)),
)
QUESTION = Question(
    arms=ARMS, against="tuned", metric="balanced_accuracy", shots=(2, 8), draws=2, measure=("east", "north")
)


@pytest.fixture(scope="module")
def study(make_study: MakeStudy) -> Study:
    local = {"epochs": 1, "batch_size": 8, "lr": 0.003}
    return make_study(
        method={"name": "fedavg", "rounds": 1, "local": local, "ood_detection": True}, evaluate={"every": 0}
    )


@pytest.fixture(scope="module")
def asked(study: Study, hospitals: Hospitals) -> list[Cell]:
    return cells(study, QUESTION, hospitals, 1, "test")


@pytest.fixture(scope="module")
def done(asked: list[Cell], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shots")
    assert len(list(run(asked, out, 1, 1))) == 2
    return out


def test_arms_that_wait_with_the_same_model_are_one_piece_of_work(asked: list[Cell]) -> None:
    assert len(asked) == 6
    assert len({cell.digest for cell in asked}) == 2


def test_it_is_what_fitting_by_hand_says(
    asked: list[Cell], done: Path, study: Study, hospitals: Hospitals, tmp_path: Path
) -> None:
    """A naive twin: train without the site, draw, fit, ask; draw after draw."""
    others = Hospitals({name: spec for name, spec in hospitals.cohorts.items() if name != "east"})
    made = simulate(study, others, tmp_path / "others")
    prepare(study, hospitals, tmp_path / "all")
    east = simulated_cohort(study, tmp_path / "all", "east")
    manifest, state = load_weights(str(made))
    known = OodModel.read(made, manifest.sha256)
    assert known is not None
    local_model, task = LocalModel(study, CPU), study.tasks[0]
    assert isinstance(task, Task)
    for cell in asked:
        if cell.arm == "scratch":
            continue
        logits = []
        for number in range(2):
            seed = derive(study.seed, "draw", "east", number)
            assert cell.cases is not None
            own = only(east, shots(east, task, cell.cases, seed))
            fit = next(arm.fit for arm in ARMS if arm.name == cell.arm)
            fitted(local_model, own, study, Given(state, known.sums), fit, seed)
            logits.append(answers_of(local_model, study, east)["cls"].outputs)
        found = outcome(cell, done).found["east"]["east"]["cls"]
        np.testing.assert_array_equal(found.outputs, np.concatenate(logits))
        assert len(found.patients) == 2 * len(logits[0])
        assert len(set(found.patients.tolist())) == len(logits[0])  # every image is a patient of its own here


def test_a_site_without_so_many_cases_is_said_and_not_cut(asked: list[Cell], done: Path) -> None:
    for cell in asked:
        ended = outcome(cell, done)
        assert set(ended.found) == ({"east", "north"} if cell.cases == 2 else {"east"})
        lacking = ("north has only 4 of left, 4 of right, 4 of middle to train on; not measured there",)
        assert ended.troubles == (() if cell.cases == 2 else lacking)


def test_the_result_has_a_row_for_every_arm_and_number_of_shots(asked: list[Cell], done: Path) -> None:
    own = groups(asked, done)
    result = answered(QUESTION, own)
    assert [(row["arm"], row["cases"]) for row in result["rows"]] == [
        (arm, size) for size in (2, 8) for arm in ("tuned", "ridge", "scratch")
    ]
    for row in result["rows"]:
        assert row["per_class"]
        assert set(row["sites"]) == ({"east", "north"} if row["cases"] == 2 else {"east"})
        assert "auroc" not in row["metrics"]
        assert row["macro"]["low"] <= row["macro"]["value"] <= row["macro"]["high"]
    ridge = next(cell for cell in asked if (cell.arm, cell.cases) == ("ridge", 8))
    answers = outcome(ridge, done).found["east"]["east"]["cls"]
    half = len(answers.targets) // 2
    each = []
    for part in (slice(0, half), slice(half, None)):
        hit = answers.outputs[part].argmax(1) == answers.targets[part]
        each.append(np.mean([hit[answers.targets[part] == label].mean() for label in range(3)]))
    row = next(row for row in result["rows"] if (row["arm"], row["cases"]) == ("ridge", 8))
    assert row["macro"]["value"] == pytest.approx(np.mean(each))  # the mean over draws
    assert all(line["auroc"] is None for line in lines(QUESTION, own))


def test_where_no_site_has_so_many_the_rest_is_still_told(study: Study, hospitals: Hospitals, tmp_path: Path) -> None:
    changes = {"shots": (2, 30), "measure": ("north",), "arms": ARMS[1:], "against": "ridge", "draws": 1}
    question = QUESTION.model_copy(update=changes)
    asked = cells(study, question, hospitals, 1, "test")
    assert len(list(run(asked, tmp_path, 1, 1))) == 2
    rows = answered(question, groups(asked, tmp_path))["rows"]
    assert [row["macro"] is None for row in rows] == [False, False, True, True]
    assert "only 4 of left" in rows[2]["troubles"][0]
    expects = Question.model_validate(
        question.model_dump(by_alias=True)
        | {"expect": [{"arm": "scratch", "over": "ridge", "cases": 30, "at_most": 0}]}
    )
    with pytest.raises(RunError, match="expects something at 30, and no site has so many"):
        answered(expects, groups(asked, tmp_path))
