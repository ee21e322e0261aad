"""What a comparison is asked: read strictly, with every fault named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import StudyError
from common.plan import Gradient, Recalibrate
from helpers.work import MakeStudy
from simulations.compare.question import BUILT_IN, Arm, read_comparison

SHOTS = {"arms": ["new_site", "source_only"], "against": "new_site", "metric": "accuracy", "shots": [5]}


def asked(tmp_path: Path, **compare: Any):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "x", "compare": compare}))
    return read_comparison(tmp_path / "study.yaml")


def test_without_a_word_the_usual_arms_are_compared(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: x\n")
    (question,) = read_comparison(tmp_path / "study.yaml").questions
    assert [arm.name for arm in question.arms] == ["study", "scratch", "local", "pooled", "fedavg"]
    assert question.against == "study"


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ({"arms": ["study"]}, "at least 2"),
        ({"arms": ["study", "fedwhat"]}, "no arm is called 'fedwhat'"),
        ({"arms": ["study", "study"]}, "more than one arm is called study"),
        ({"arms": ["scratch", "local"]}, "study is none of the arms"),
        ({"arms": ["study", "local"], "against": "pooled"}, "pooled is none of the arms"),
        ({"arms": ["study", "local"], "metric": "f1"}, "metric"),
        ({"arms": ["study", "local"], "margin": 0}, "margin"),
        ({"arms": ["study", "local"], "why": 1}, "why"),
        ({"arms": ["study", "local"], "expect": [{"arm": "study", "over": "local"}]}, "at_least, at_most or within"),
        (
            {"arms": ["study", "local"], "expect": [{"arm": "study", "over": "local", "cases": 40, "at_least": 0}]},
            "40 is not among the cases",
        ),
        (SHOTS | {"cases": [20]}, "go with neither cases nor folds"),
        (SHOTS | {"metric": "auroc"}, "scores of several models make no AUROC"),
        (SHOTS | {"arms": ["new_site", "study"]}, "study must be for a new_site, or of nobody"),
        (SHOTS | {"expect": [{"arm": "new_site", "over": "source_only", "cases": 7, "at_least": 0}]}, "7 is not among"),
        (SHOTS | {"arms": [{"name": "a", "who": "nobody", "fit": {"how": "magic"}}, "new_site"]}, "how"),
    ],
)
def test_faults_are_named(tmp_path: Path, question: dict[str, Any], fault: str) -> None:
    with pytest.raises(StudyError, match=fault) as caught:
        asked(tmp_path, questions=[{"name": "q", **question}])
    assert "compare.questions" in str(caught.value)


def test_questions_have_names_of_their_own(tmp_path: Path) -> None:
    question = {"name": "q", "arms": ["study", "local"]}
    with pytest.raises(StudyError, match="more than one question is called q"):
        asked(tmp_path, questions=[question, question])


def test_a_preset_gets_the_gradient_work_of_the_study(make_study: MakeStudy) -> None:
    study = make_study(method={"name": "graft", "rounds": 5, "local": {"epochs": 3, "lr": 0.007}})
    (stage,) = BUILT_IN["fedbn"].apply(study, "x").plan
    assert stage.rounds == 5
    assert isinstance(stage.local, Gradient)
    assert (stage.local.epochs, stage.local.lr) == (3, 0.007)


def test_an_arm_changes_what_it_says_and_nothing_else(make_study: MakeStudy) -> None:
    study = make_study()
    assert BUILT_IN["study"].apply(study, "x").digest == study.digest
    scratch = make_study(model={"backbone": "slim_resnet", "weights": "slim-ctmr-synthetic"}, input={"kind": "image"})
    changed = BUILT_IN["scratch"].apply(scratch, "x")
    assert changed.model.weights is None
    assert changed.plan == scratch.plan
    mine = Arm.model_validate({"name": "mine", "set": {"plan.0.rounds": 7}}).apply(study, "x")
    assert [stage.rounds for stage in mine.plan] == [7]
    method = Arm.model_validate({"name": "mine", "set": {"method": "graft"}}).apply(study, "x")
    assert isinstance(method.plan[-1].local, Recalibrate)
    with pytest.raises(StudyError, match=r"set plan\.9\.rounds"):
        Arm.model_validate({"name": "mine", "set": {"plan.9.rounds": 7}}).apply(study, "x")
