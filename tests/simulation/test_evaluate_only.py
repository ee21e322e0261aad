"""A given model, measured at hospitals where nobody trains: its figures, under their policies, and an honest record."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import Command
from fedgraft.client.enrolment.config import read_site
from fedgraft.client.governance.review import in_words, review
from fedgraft.client.governance.verdict import judge
from fedgraft.common.base.errors import StudyError, WeightsError
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.checks.explain import check_study, explain
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.models.model import build_model
from fedgraft.common.models.weights import find, load_manifest
from fedgraft.common.study.schedule import schedule, split_at, step_at
from fedgraft.common.study.study import Study, find_study, parse_study
from fedgraft.server.report import build_report
from fedgraft.simulations.compare.measures.answers import MERGED
from fedgraft.simulations.compare.question import BUILT_IN, Question
from fedgraft.simulations.compare.running.cells import cells, outcome, run
from fedgraft.simulations.engines.run import OPEN, Engine, Hospitals, prepare
from helpers.simulated import simulate
from helpers.work import MakeStudy


@pytest.fixture(scope="module")
def trained(make_study: MakeStudy, hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained a model, and what it says of it."""
    local = {"steps": 4, "batch_size": 8, "lr": 0.01}
    study = make_study(method={"name": "fedavg", "rounds": 1, "local": local}, evaluate={"every": 0})
    return simulate(study, hospitals, tmp_path_factory.mktemp("trained") / "run")


def measuring(make_study: MakeStudy, model: Path, **changes: Any) -> Study:
    weights = {"backbone": "slim_resnet", "weights": str(model)}
    return make_study(plan=[], model=weights, evaluate={"every": 0}, name="measured", **changes)


def sites_of(run: Path) -> dict[str, Any]:
    return read_json(run / "result.json")["metrics"]["cls"]["sites"]


@pytest.mark.parametrize("engine", ["inprocess", "pool"])
def test_a_given_model_has_the_figures_that_its_own_run_had(
    engine: str, make_study: MakeStudy, hospitals: Hospitals, trained: Path, tmp_path: Path
) -> None:
    """By the path of its file; in one exchange, in which nothing but figures goes up."""
    study = measuring(make_study, trained / "model.safetensors")
    assert study.model.heads == "weights"
    made = simulate(study, hospitals, tmp_path / "run", Engine(name=engine))
    assert sites_of(made) == sites_of(trained)
    result = read_json(made / "result.json")
    assert result["status"] == "completed"
    assert result["plan"] == []
    assert result["remarks"] == ["Nobody trained: test was measured as it is."]
    before, after = load_tensors(trained / "model.safetensors"), load_tensors(made / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(array.tobytes() == after[key].tobytes() for key, array in before.items())
    then, now = load_manifest(str(trained)), load_manifest(str(made))
    assert (now.trained_on, now.held_out) == (then.trained_on, then.held_out), "measuring is not training"
    assert "measured there as it is" in now.how
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the command would print what the plots say of their axes
        page = build_report(made).read_text()
    assert "Nobody trained" in page
    assert [step_at(study, step.exchange) for step in schedule(study)] == list(schedule(study))
    assert [(step.work, split_at(study, step)) for step in schedule(study)] == [(False, "test")]


def test_what_leaves_is_what_each_site_s_policy_of_metrics_says(
    make_study: MakeStudy, hospitals: Hospitals, trained: Path, tmp_path: Path
) -> None:
    """Exact at one, noised and coarse at others, none at one; sites take part that let nothing out without noise."""
    rules = {"east": "exact", "north": "none", "south": "noised", "west": "suppressed"}
    strict = OPEN.model_copy(update={"allow_non_dp": False})
    policies = {
        site: (OPEN if site == "east" else strict).model_copy(update={"metrics": rule}) for site, rule in rules.items()
    }
    study = measuring(make_study, trained)
    made = simulate(study, Hospitals(hospitals.cohorts, policies=policies), tmp_path / "run")
    metrics, exact = read_json(made / "result.json")["metrics"]["cls"], sites_of(trained)
    assert set(metrics["sites"]) == {"east", "south", "west"}
    assert metrics["sites"]["east"] == exact["east"]
    assert metrics["sites"]["south"]["loss"] is metrics["sites"]["west"]["loss"] is None
    assert metrics["intervals"]["sites"]["south"] == metrics["intervals"]["sites"]["west"] == {}
    assert read_json(made / "result.json")["status"] == "completed"
    assert build_report(made).is_file(), "sums of exact and coarse counts are read back"


def test_under_masks_the_sums_of_all_sites_are_read_and_no_more(
    make_study: MakeStudy, hospitals: Hospitals, trained: Path, tmp_path: Path
) -> None:
    study = measuring(make_study, trained, secure_aggregation=True)
    made = simulate(study, hospitals, tmp_path / "run")
    found, wanted = (read_json(one / "result.json")["metrics"]["cls"] for one in (made, trained))
    assert found["sites"] == {}
    assert found["pooled"]["n"] == wanted["pooled"]["n"]
    assert found["pooled"]["accuracy"] == wanted["pooled"]["accuracy"]


def test_a_model_that_may_have_seen_the_test_cases_is_said_to(
    make_study: MakeStudy, hospitals: Hospitals, trained: Path, tmp_path: Path
) -> None:
    study = measuring(make_study, trained, split={"train": 0.3, "val": 0.1, "test": 0.6})
    made = simulate(study, hospitals, tmp_path / "run")
    _, doubt = read_json(made / "result.json")["remarks"]
    assert "it may have learnt from cases that are tested here" in doubt
    assert load_manifest(str(made)).held_out == load_manifest(str(trained)).held_out


def test_an_operating_point_for_these_hospitals_costs_one_more_exchange(
    hospitals: Hospitals, make_study: MakeStudy, trained: Path
) -> None:
    study = measuring(make_study, trained)
    data = study.model_dump(mode="json")
    data["evaluate"]["operating_point"] = "youden"
    asked = parse_study(data, "x")
    assert [split_at(asked, step) for step in schedule(asked)] == ["val", "test"]


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ({"backbone": "slim_resnet", "weights": None}, "name its run or its file as model.weights"),
        ({"backbone": "slim_resnet", "weights": "slim-ctmr-synthetic", "heads": "fresh"}, "name its run or its file"),
    ],
)
def test_nothing_to_measure_is_refused(make_study: MakeStudy, model: dict[str, Any], fault: str) -> None:
    with pytest.raises(StudyError, match=fault):
        make_study(plan=[], model=model)


def test_a_model_for_other_classes_or_other_images_is_refused(make_study: MakeStudy, trained: Path) -> None:
    with pytest.raises(StudyError, match=r"have no head for task 'cls' with its classes .* heads come with them"):
        check_study(measuring(make_study, trained, tasks=[{"name": "cls", "classes": ["left", "right"]}]), "x")
    with pytest.raises(StudyError, match="answers for other input than the study's"):
        check_study(measuring(make_study, trained, input={"kind": "image", "size": 64}), "x")
    other = trained / "result.json"
    with pytest.raises(WeightsError, match=r"is no model\.safetensors with a manifest beside it"):
        find(str(other))


@pytest.mark.slow
def test_a_table_model_is_measured_on_the_scale_that_it_learnt(command: Command, tmp_path: Path) -> None:
    assert command("simulate", "breast_cancer", "--set", "method.rounds=1", "--out", tmp_path / "one")[0] == 0
    study, _ = find_study(Path("breast_cancer"))
    model = {"backbone": "table_mlp", "weights": str(tmp_path / "one")}
    data = study.model_dump(mode="json") | {"plan": [], "model": model}
    (tmp_path / "measure.yaml").write_text(yaml.safe_dump(data))
    words = ("--scenario", "breast_cancer", "--out", tmp_path / "two")
    code, out, err = command("simulate", tmp_path / "measure.yaml", *words)
    assert code == 0, err
    assert "Nobody trained" in out
    code, out, err = command("study", "explain", tmp_path / "measure.yaml")
    assert "Nobody trains, and no entry leaves a site" in " ".join(out.split()), err
    one, two = (read_json(tmp_path / run / "result.json") for run in ("one", "two"))
    assert one["metrics"]["diagnosis"]["sites"] == two["metrics"]["diagnosis"]["sites"]
    assert one["operating_points"] == two["operating_points"] != {}


def test_a_hospital_reads_that_nothing_is_trained(
    make_study: MakeStudy, hospitals: Hospitals, trained: Path, tmp_path: Path
) -> None:
    """Under a policy that lets nothing out without noise: there is nothing to refuse, and figures are named."""
    study = measuring(make_study, trained)
    assert explain(study, "x").rows == []
    strict = OPEN.model_copy(update={"allow_non_dp": False})
    prepare(study, Hospitals(hospitals.cohorts, policies={"east": strict}), tmp_path / "run")
    config = read_site(tmp_path / "run" / "sites" / "east")
    model = build_model("slim_resnet", {"cls": 3}, channels=1, seed=0)
    found = judge(config, study, model.tags(), 24)
    assert (found.refused, found.stages) == ("", ())
    told = " ".join(in_words(review(study, model, config, found, approved=False) | {"data": None}))
    assert "nothing is trained and no entry leaves" in told
    assert "over the site's cases of the test split once" in told
    assert "val split" not in told


def test_finished_models_are_arms_of_a_comparison(
    make_study: MakeStudy, hospitals: Hospitals, trained: Path, tmp_path: Path
) -> None:
    """With the figures that their own runs reported; and not on patients that they may have learnt from."""
    arms = [BUILT_IN["study"], {"name": "theirs", "weights": str(trained)}]
    question = Question.model_validate({"arms": arms, "against": "study", "metric": "accuracy"})
    study = make_study(evaluate={"every": 0}, method={"name": "fedavg", "rounds": 1, "local": {"steps": 1}})
    todo = [cell for cell in cells(study, question, hospitals, 1, "test") if cell.arm == "theirs"]
    list(run(todo, tmp_path, 1, 1))
    found = outcome(todo[0], tmp_path).found[MERGED]
    for site, values in sites_of(trained).items():
        answers = found[site]["cls"]
        assert len(answers.targets) == values["n"]
        assert np.mean(answers.outputs.argmax(1) == answers.targets) == pytest.approx(values["accuracy"], abs=1e-6)
    with pytest.raises(StudyError, match="may have learnt from cases that are tested here"):
        cells(study, question, hospitals, 2, "test")
    folded = Question.model_validate({"arms": arms, "folds": 2})
    with pytest.raises(StudyError, match="with folds every patient is tested"):
        cells(study, folded, hospitals, 1, "test")
    arms[1] |= {"elsewhere": True}
    anew = Question.model_validate({"arms": arms, "against": "study"})
    assert len(cells(study, anew, hospitals, 2, "test")) == 4
    with pytest.raises(ValueError, match="a finished model is measured as it is"):
        Question.model_validate({"arms": [BUILT_IN["study"], {"name": "x", "weights": "y", "method": "fedavg"}]})


def test_a_finished_model_is_measured_with_what_each_site_keeps(
    make_study: MakeStudy, hospitals: Hospitals, tmp_path: Path
) -> None:
    """Its run's own figures were of that; a run that shares the same model and keeps nothing has others."""
    local = {"steps": 4, "batch_size": 8, "lr": 0.01}
    plain, kept = (
        make_study(method={"name": name, "rounds": 1, "local": local}, evaluate={"every": 0})
        for name in ("fedavg", "ditto")
    )
    of_plain, of_kept = (simulate(study, hospitals, tmp_path / study.plan[-1].name) for study in (plain, kept))
    assert load_manifest(str(of_plain)).sha256 == load_manifest(str(of_kept)).sha256
    assert sites_of(of_plain) != sites_of(of_kept)
    arms = [
        {"name": "theirs", "weights": str(of_kept / "model.safetensors")},
        {"name": "shared", "weights": str(of_plain)},
        {"name": "foreign", "weights": str(of_kept), "elsewhere": True},
    ]
    question = Question.model_validate({"arms": arms, "against": "shared", "metric": "accuracy"})
    todo = cells(plain, question, hospitals, 1, "test")
    list(run(todo, tmp_path / "cells", 1, 1))
    measured = simulate(measuring(make_study, of_kept), hospitals, tmp_path / "measured")
    assert sites_of(measured) == sites_of(of_plain), "what all share"
    assert "each site keeps entries of its own" in read_json(measured / "result.json")["remarks"][1]
    wanted = {"theirs": of_kept, "shared": of_plain, "foreign": of_plain}
    for cell in todo:
        found = outcome(cell, tmp_path / "cells").found[MERGED]
        for site, values in sites_of(wanted[cell.arm]).items():
            sums = ClassificationSums.of(found[site]["cls"].outputs, found[site]["cls"].targets)
            assert sums.values() == pytest.approx(values, abs=1e-6), (cell.arm, site)
