"""What a comparison is asked: read strictly, with every fault named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedgraft.common.base.errors import StudyError
from fedgraft.common.base.files import CONFIGS
from fedgraft.common.checks.explain import check_study
from fedgraft.common.study.plan import Gradient, Recalibrate
from fedgraft.common.study.stages.aggregates import ServerOptimiser
from fedgraft.common.study.study import read_study
from fedgraft.simulations.compare.arm_plans import arm_plans, losses_left
from fedgraft.simulations.compare.command import CompareRequest, asked_for
from fedgraft.simulations.compare.question import (
    BUILT_IN,
    Arm,
    Question,
    changed,
    read_comparison,
)
from fedgraft.simulations.compare.refusals import check_arm
from fedgraft.simulations.compare.work import CASES, OPTIMISER, WORK
from helpers.harmonised import INPUT, study
from helpers.work import MakeStudy

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
        ({"arms": ["study", "local"], "metric": "f2"}, "metric: there is no 'f2' to compare by"),
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


def test_a_preset_takes_work_and_optimiser_from_the_study_and_nothing_of_its_method(make_study: MakeStudy) -> None:
    """FedBN once carried FedProx's anchor, and an arm `fedprox` carried it twice."""
    method = {
        "kind": "gradient",
        "train": "all_but_norm_stats",
        "fixed_norm_stats": True,
        "layer_decay": 0.5,
        "losses": [{"kind": "supervised"}, {"kind": "proximal", "weight": 3.0}],
        "rollback": {},
        "inner_steps": {},
        "heads_first": 2,
        "methods": [{"kind": "fedsam"}],
    }
    kept = {"steps": 9, "batch_size": 5, "optimiser": "sgd", "lr": 0.02, "momentum": 0.4, "weight_decay": 0.1}
    kept |= {
        "schedule": "cosine",
        "warmup": 0.2,
        "clip_norm": 2.0,
        "backbone_lr_factor": 0.3,
        "augment": {"flip": False},
    }
    stage = {"name": "mine", "local": method | kept, "share": "all", "aggregate": {"kind": "mean"}, "rounds": 4}
    study = make_study(plan=[stage | {"weight_averaging": {"rule": "ema"}, "early_stopping": {}, "joint_lambda": 1.0}])
    for name in ("fedbn", "fedprox", "fixbn", "fedrep", "lp_ft"):
        wanted = make_study(method={"name": name, "rounds": 4, "local": kept}).plan
        assert BUILT_IN[name].apply(study, "x").plan == wanted, name


def test_it_is_decided_of_every_key_of_gradient_work_whose_it_is() -> None:
    """A key that is added later is either work, optimiser or cases, or belongs to a method: somebody has to say."""
    of_a_method = {
        "kind",
        "train",
        "fixed_norm_stats",
        "layer_decay",
        "heads_first",
        "inner_steps",
        "rollback",
        "losses",
        "methods",
    }
    taken = {*WORK, *OPTIMISER, *CASES}
    assert not taken & of_a_method
    assert taken | of_a_method == set(Gradient.model_fields)


def test_what_an_arm_differs_in_is_all_that_it_differs_in(make_study: MakeStudy) -> None:
    study = make_study(method={"name": "fedavg", "rounds": 2, "local": {"steps": 3}})
    arms = ["study", {"name": "mine", "who": "alone", "set": {"plan.0.local.lr": 0.5}}, "fedprox", "shuffled"]
    question = Question.model_validate({"arms": arms, "against": "study"})
    told = {one["arm"]: one for one in arm_plans(question, {arm.name: arm.apply(study, "x") for arm in question.arms})}
    assert told["study"]["differs"] == []
    assert told["mine"]["differs"] == ["who: alone (not together)", "plan.0.local.lr: 0.5 (not 0.001)"]
    assert told["shuffled"]["differs"] == ["labels: shuffled (not known)"]
    (losses,) = told["fedprox"]["differs"]
    assert losses.startswith("plan.0.local.losses: supervised ")
    assert "proximal weight" in losses
    assert told["fedprox"]["plan"] == BUILT_IN["fedprox"].apply(study, "x").model_dump(mode="json")["plan"]


def test_a_loss_of_the_study_that_presets_do_without_is_named(make_study: MakeStudy) -> None:
    """Also where no arm is the study itself, so that no difference of arms tells of it; not of arms that have it."""
    losses = [{"kind": "supervised"}, {"kind": "proximal", "to": "round", "weight": 3.0}]
    study = make_study(method={"name": "fedavg", "rounds": 2, "local": {"steps": 3, "losses": losses}})
    with_it = {"name": "mine", "method": "fedavg", "set": {"plan.0.local.losses": losses}}
    question = Question.model_validate({"arms": ["fedbn", "fedprox", "local", with_it], "against": "fedbn"})
    (said,) = losses_left(question, study, {arm.name: arm.apply(study, "x") for arm in question.arms})
    assert said.startswith("Without the study's loss (proximal weight 3.0")
    assert "): fedbn, fedprox. " in said
    plain = make_study(method={"name": "fedavg", "rounds": 2, "local": {"steps": 3}})
    assert losses_left(question, plain, {arm.name: arm.apply(plain, "x") for arm in question.arms}) == []


def test_an_arm_changes_what_it_says_and_nothing_else(make_study: MakeStudy) -> None:
    study = make_study()
    assert BUILT_IN["study"].apply(study, "x").digest == study.digest
    scratch = make_study(model={"backbone": "slim_resnet", "weights": "slim-ctmr-synthetic"}, input={"kind": "image"})
    made = BUILT_IN["scratch"].apply(scratch, "x")
    assert made.model.weights is None
    assert made.plan == scratch.plan
    mine = Arm.model_validate({"name": "mine", "set": {"plan.0.rounds": 7}}).apply(study, "x")
    assert [stage.rounds for stage in mine.plan] == [7]
    method = Arm.model_validate({"name": "mine", "set": {"method": "graft"}}).apply(study, "x")
    assert isinstance(method.plan[-1].local, Recalibrate)
    with pytest.raises(StudyError, match=r"set plan\.9\.rounds"):
        Arm.model_validate({"name": "mine", "set": {"plan.9.rounds": 7}}).apply(study, "x")


def test_the_few_shot_study_that_ships_asks_what_can_be_answered() -> None:
    path = CONFIGS / "studies" / "few_shot.yaml"
    study, _ = read_study(path)
    (question,) = read_comparison(path).questions
    assert question.sizes == (5, 10, 20, 50)
    plain = study.model_dump(mode="json")
    plans = {}
    for arm in question.arms:
        own = arm.apply(changed(plain, question.keys, "x"), "x")
        check_study(own, arm.name)
        plans[arm.name] = own.plan
    assert plans["fedavg_tuned"] == plans["fedavg_ridge"] == study.plan
    # Only what makes a start differ: the aggregation of Reptile, the steps ahead of MAML.
    assert isinstance(plans["reptile_tuned"][0].aggregate, ServerOptimiser)
    assert plans["reptile_tuned"][0].local == plans["fedavg_tuned"][0].local
    ahead = plans["fomaml_tuned"][0].local
    assert isinstance(ahead, Gradient)
    assert ahead.model_copy(update={"inner_steps": None}) == plans["fedavg_tuned"][0].local


TWO = [{"name": "short", "arms": ["study", "local"]}, {"name": "long", "by_name": True, "arms": ["study", "fedbn"]}]


@pytest.mark.parametrize(
    ("only", "names"), [((), ["short"]), (("long",), ["long"]), (("long", "short"), ["short", "long"])]
)
def test_a_long_question_is_asked_by_its_name_alone(tmp_path: Path, only: tuple[str, ...], names: list[str]) -> None:
    comparison = asked(tmp_path, questions=TWO)
    words = CompareRequest(tmp_path, None, None, (), None, (), only, quick=False, workers=1, threads=1)
    assert [question.name for question in asked_for(comparison, words).questions] == names


def test_of_long_questions_alone_none_would_be_asked(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="all are by_name"):
        asked(tmp_path, questions=TWO[1:])


@pytest.mark.slow
def test_every_arm_of_the_chest_x_rays_can_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the images: plans, models and weights fit together, those of questions that are asked by name too."""
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path))  # weights are unpacked there
    path = CONFIGS / "studies" / "cxr.yaml"
    study, _ = read_study(path)
    questions = {question.name: question for question in read_comparison(path).questions}
    wanted = {
        "sizes",
        "px128",
        "px128_alone",
        "px224",
        "private_300",
        "methods",
        "best",
        "ifca",
        "ifca_imagenet",
        "new_site",
        "masked",
        "bytes",
    }
    assert wanted == {name for name, question in questions.items() if question.by_name}
    for question in questions.values():
        asks = changed(study.model_dump(mode="json"), question.keys, question.name)
        for arm in question.arms:
            check_arm(arm.apply(asks, question.name), f"{question.name}, {arm.name}", arm)
    private = {arm.keys.get("plan.0.local.private", {}).get("epsilon") for arm in questions["private"].arms}
    assert {8.0, 3.0} <= private
    assert questions["sizes"].sizes == (50, 100, 200)


def test_an_arm_with_another_harmonisation_has_the_stages_of_it() -> None:
    """With and without ComBat, as two arms: the stages that come first are those of the arm's own columns."""
    for own, told in ((None, {"covariates": ["age", "sex"]}), ({"covariates": ["age"]}, None)):
        given = study(input=INPUT | ({"harmonise": own} if own else {}))
        arm = Arm(name="other", method="ridge_probe", set={"input.harmonise": told})
        other = arm.apply(given, "test")
        check_study(other, "test")
        names = [stage.name for stage in other.plan]
        assert names == [*(["combat", "harmonise"] if told else []), "standardise", "probe"]
