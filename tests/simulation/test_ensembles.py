"""Finished models together, end to end: what is solved, what stays, what travels, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from conftest import CLASSES, Command
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.training.model.evaluate import predictions
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.statistics import frozen_sums
from fedgraft.common.base.errors import (
    QuorumError,
    RunError,
    StudyError,
    WeightsError,
)
from fedgraft.common.base.files import load_tensors, read_json, write_json
from fedgraft.common.checks.explain import check_study, explain, sentence
from fedgraft.common.closed_form.closed_form import ridge_head
from fedgraft.common.closed_form.temperature import TEMPERATURES
from fedgraft.common.models.ensemble import Ensemble
from fedgraft.common.models.initialise import initialise, make_model, teach
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import changed
from fedgraft.common.study.plan import Role, Stage, Statistics
from fedgraft.common.study.study import Study, parse_study
from fedgraft.server.aggregation.ridge_penalty import RIDGE_PENALTIES
from fedgraft.simulations.engines.faults import Fault
from fedgraft.simulations.engines.run import OPEN, Hospitals, simulated_cohort
from helpers.simulated import resume, simulate
from helpers.work import CPU, MakeStudy

OTHER = "shufflenet_v2_x0_5"
LOCAL = {"epochs": 1, "batch_size": 8, "lr": 0.003}
TRAINED = {"name": "fedavg", "rounds": 2, "local": LOCAL}


@pytest.fixture(scope="module")
def base_models(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two finished runs, of two backbones."""
    folder = tmp_path_factory.mktemp("base_models")
    slim = simulate(make_study(name="slim", method=TRAINED), hospitals, folder / "slim")
    other = make_study(name="other", model={"backbone": OTHER}, method=TRAINED)
    return slim, simulate(other, hospitals, folder / "other")


def ensemble(base_models: tuple[Path, Path], **more: Any) -> dict[str, Any]:
    named = [{"weights": str(base_models[0])}, {"weights": str(base_models[1]), "backbone": OTHER}]
    return {"backbone": "ensemble", "base_models": [one | more for one in named]}


def answers(study: Study, run: Path, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By site the logits and classes of the model in a run's folder."""
    local_model = LocalModel(study, CPU)
    local_model.load(load_tensors(run / "model.safetensors"))
    found = {}
    for site in read_json(run / "sites" / "index.json"):
        cohort = simulated_cohort(study, run, site)
        found[site] = predictions(local_model, Loader(cohort, study.input, CPU), split)["cls"]
    return found


def pooled(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.vstack([own[0] for own in found.values()]), np.concatenate([own[1] for own in found.values()])


@pytest.fixture(scope="module")
def of_base_models(base_models: tuple[Path, Path], make_study: MakeStudy) -> Any:
    """What each base model says by itself of all sites' cases of a split, by split, and the classes."""

    def found(split: str) -> tuple[list[np.ndarray], np.ndarray]:
        slim = pooled(answers(make_study(name="slim", method=TRAINED), base_models[0], split))
        other = make_study(name="other", model={"backbone": OTHER}, method=TRAINED)
        return [slim[0], pooled(answers(other, base_models[1], split))[0]], slim[1]

    return found


def best_temperature(logits: np.ndarray, target: np.ndarray) -> float:
    """The grid's temperature of the least cross-entropy on all cases at one place."""
    losses = [
        -log_softmax(logits.astype(np.float64) / t, axis=1)[np.arange(len(target)), target].sum() for t in TEMPERATURES
    ]
    return float(TEMPERATURES[int(np.argmin(losses))])


@pytest.fixture(scope="module")
def average(hospitals, make_study, base_models, tmp_path_factory) -> tuple[Study, Path]:
    study = make_study(name="average", model=ensemble(base_models), method="average_ensemble")
    return study, simulate(study, hospitals, tmp_path_factory.mktemp("average") / "run")


@pytest.fixture(scope="module")
def stacked(hospitals, make_study, base_models, tmp_path_factory) -> tuple[Study, Path]:
    study = make_study(name="stacked", model=ensemble(base_models), method="stacked_ensemble")
    return study, simulate(study, hospitals, tmp_path_factory.mktemp("stacked") / "run")


def test_temperatures_are_those_of_all_validation_cases_at_one_place(average, of_base_models) -> None:
    logits, target = of_base_models("val")
    found = load_tensors(average[1] / "model.safetensors")["backbone.temperatures.cls.values"]
    np.testing.assert_allclose(found, [best_temperature(own, target) for own in logits], rtol=1e-6)


@pytest.mark.parametrize("of", ["base_models", "answers"])
def test_what_a_site_sends_is_the_loss_on_its_validation_cases(average, base_models, make_study, of) -> None:
    study, run = average
    local_model = LocalModel(study, CPU)
    local_model.load(initialise(study).state())  # before any temperature
    cohort = simulated_cohort(study, run, "south")
    loader = Loader(cohort, study.input, CPU)
    sums = frozen_sums(local_model, loader, Statistics.model_validate({"of": of, "split": "val"}))
    if of == "answers":
        said = [predictions(local_model, loader, "val")["cls"]]
    else:
        slim = answers(make_study(name="slim", method=TRAINED), base_models[0], "val")["south"]
        other = make_study(name="other", model={"backbone": OTHER}, method=TRAINED)
        said = [slim, answers(other, base_models[1], "val")["south"]]
    assert sums["cls/cases"].tolist() == [len(said[0][1])]
    assert 0 < len(said[0][1]) < len(loader.labelled("train"))
    for row, (logits, target) in zip(sums[f"cls/{of}"], said, strict=True):
        by_hand = [
            -log_softmax(logits.astype(float) / t, axis=1)[np.arange(len(target)), target].sum() for t in TEMPERATURES
        ]
        np.testing.assert_allclose(row, by_hand, rtol=1e-4, atol=1e-4)


def test_the_average_is_the_mean_of_calibrated_probabilities(average, of_base_models) -> None:
    study, run = average
    logits, target = of_base_models("test")
    temperatures = load_tensors(run / "model.safetensors")["backbone.temperatures.cls.values"]
    mean = np.mean([softmax(own / t, axis=1) for own, t in zip(logits, temperatures, strict=True)], axis=0)
    said, truth = pooled(answers(study, run, "test"))
    np.testing.assert_array_equal(truth, target)
    np.testing.assert_allclose(softmax(said, axis=1), mean, atol=2e-6)


def features_of(logits: list[np.ndarray], temperatures: np.ndarray) -> np.ndarray:
    """The mean answer as logits, and then each base model's probabilities, as an ensemble's features are."""
    shares = [softmax(own.astype(np.float64) / t, axis=1) for own, t in zip(logits, temperatures, strict=True)]
    return np.hstack([np.log(np.mean(shares, axis=0)) / 1024, *shares])


def test_the_stack_is_that_of_all_validation_cases_at_one_place(stacked, of_base_models) -> None:
    """Steps on residuals from the average, in a few lines; the run's own features come from float32 passes."""
    _, run = stacked
    state = load_tensors(run / "model.safetensors")
    logits, target = of_base_models("val")
    features = features_of(logits, state["backbone.temperatures.cls.values"])
    z = np.hstack([features, np.ones((len(target), 1))])
    head = np.vstack([np.eye(3) * 1024, np.zeros((7, 3))])  # the average
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    ridge_penalties = [row["ridge_penalties"]["cls"] for row in rows if row["stage"] == "stack"]
    assert len(ridge_penalties) == 5
    assert set(ridge_penalties) <= set(RIDGE_PENALTIES)
    for ridge_penalty in ridge_penalties:
        wrong = np.eye(3)[target] - softmax(z @ head, axis=1)
        weight, bias = ridge_head(z.T @ z, z.T @ wrong, ridge_penalty, standardise=False)
        head += 2 * np.vstack([weight.T, bias])
    sharp = best_temperature(z @ head, target)
    np.testing.assert_allclose(state["heads.cls.weight"].T, head[:-1] / sharp, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(state["heads.cls.bias"], head[-1] / sharp, rtol=1e-3, atol=2e-3)


def base_models_in(state: Arrays) -> dict[str, bytes]:
    return {key: array.tobytes() for key, array in state.items() if key.startswith("backbone.base_models.")}


def frozen(base_models: tuple[Path, Path]) -> dict[str, bytes]:
    """All entries of both base models, buffers as well, under the names that they have in an ensemble."""
    return {
        f"backbone.base_models.{at}.{key}": array.tobytes()
        for at, run in enumerate(base_models)
        for key, array in load_tensors(run / "model.safetensors").items()
    }


def test_members_stay_as_they_are_to_the_last_bit(stacked, base_models) -> None:
    assert base_models_in(load_tensors(stacked[1] / "model.safetensors")) == frozen(base_models)


def test_training_all_on_an_ensemble_moves_heads_alone(hospitals, make_study, base_models, tmp_path) -> None:
    study = make_study(name="all", model=ensemble(base_models), method=TRAINED)
    run = simulate(study, hospitals, tmp_path / "run")
    state = load_tensors(run / "model.safetensors")
    assert base_models_in(state) == frozen(base_models)
    assert not np.array_equal(state["heads.cls.weight"], initialise(study).state()["heads.cls.weight"])


def test_no_selection_moves_a_member_not_even_one_by_role(make_study, base_models) -> None:
    tags = make_model(make_study(name="average", model=ensemble(base_models), method="average_ensemble")).tags()
    for train in ("all", {"roles": ["base_model", "scale", "head"]}, {"max_height": 9}):
        local = {"kind": "gradient", "train": train, **LOCAL}
        stage = Stage.model_validate({"name": "x", "local": local, "share": train, "aggregate": {"kind": "mean"}})
        assert {tags[key].role for key in changed(stage, tags)} == {Role.HEAD}


def test_members_travel_once(stacked, base_models, hospitals) -> None:
    size = sum((run / "model.safetensors").stat().st_size for run in base_models)
    rows = [json.loads(line) for line in (stacked[1] / "history.jsonl").read_text().splitlines()]
    assert rows[0]["bytes_down"] > 0.9 * size * len(hospitals.cohorts)
    assert len(rows) == 8
    assert all(row["bytes_down"] < 20_000 for row in rows[1:])
    assert all(row["bytes_up"] < 40_000 for row in rows)


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_the_same(hospitals, stacked, tmp_path) -> None:
    study, whole = stacked
    run = tmp_path / "run"
    ill = replace(hospitals, faults={site: Fault(kind="silent", rounds=(2,)) for site in ("east", "north", "south")})
    with pytest.raises(QuorumError):
        simulate(study, ill, run)
    facts = read_json(run / "simulation.json")
    write_json(run / "simulation.json", facts | {"faults": {}})
    resume(run)
    for key, array in load_tensors(whole / "model.safetensors").items():
        assert array.tobytes() == load_tensors(run / "model.safetensors")[key].tobytes(), key


@pytest.mark.slow
def test_masked_sums_give_the_same_average(hospitals, average, make_study, base_models, tmp_path) -> None:
    study = make_study(name="average", model=ensemble(base_models), method="average_ensemble", secure_aggregation=True)
    run = simulate(study, hospitals, tmp_path / "run")
    for key, array in load_tensors(average[1] / "model.safetensors").items():
        np.testing.assert_array_equal(load_tensors(run / "model.safetensors")[key], array)


def test_a_masked_stack_must_name_its_strength(make_study, base_models) -> None:
    study = make_study(
        name="secure_aggregation", model=ensemble(base_models), method="stacked_ensemble", secure_aggregation=True
    )
    with pytest.raises(StudyError, match="give a number, or secure_aggregation: false"):
        check_study(study, "here")


def test_predict_says_what_the_run_says(command: Command, stacked, hospitals, tmp_path) -> None:
    study, run = stacked
    site = hospitals.cohorts["north"].root
    code, _, err = command("predict", run, site, "--out", tmp_path / "p")
    assert code == 0, err
    with (tmp_path / "p" / "predictions.csv").open(newline="") as file:
        told = [[float(row[f"cls:{name}"]) for name in CLASSES] for row in csv.DictReader(file)]
    cohort = simulated_cohort(study, run, "north")
    local_model = LocalModel(study, CPU)
    local_model.load(load_tensors(run / "model.safetensors"))
    logits, _ = predictions(local_model, Loader(cohort, study.input, CPU), "all")["cls"]
    np.testing.assert_allclose(np.sort(softmax(logits, axis=1), axis=0), np.sort(told, axis=0), atol=1e-4)
    code, _, err = command("predict", run, site, "--out", tmp_path / "q", "--heat", "cam")
    assert code == 2
    assert "--heat occlusion" in err
    code, _, err = command("predict", run, site, "--out", tmp_path / "r", "--adapt")
    assert code == 2
    assert "base models are finished" in err


def test_a_finished_ensemble_is_weights_for_the_next_study(hospitals, stacked, make_study, tmp_path) -> None:
    _, run = stacked
    shape = [{}, {"backbone": OTHER}]
    model = {"backbone": "ensemble", "weights": str(run), "heads": "weights", "base_models": shape}
    plan = [{"name": "temper", "where": "labelled", "share": "heads", "aggregate": {"kind": "temper"}}]
    plan[0]["local"] = {"kind": "statistics", "of": "answers", "split": "val"}  # type: ignore[assignment]
    again = simulate(make_study(name="again", model=model, plan=plan), hospitals, tmp_path / "again")
    before, after = (load_tensors(one / "model.safetensors") for one in (run, again))
    assert base_models_in(after) == base_models_in(before)
    assert np.array_equal(after["backbone.temperatures.cls.values"], before["backbone.temperatures.cls.values"])
    head = before["heads.cls.weight"]
    sharper = after["heads.cls.weight"][0, 0] / head[0, 0]
    assert sharper > 0
    np.testing.assert_allclose(after["heads.cls.weight"], head * sharper, rtol=1e-5)
    wrong = make_study(name="wrong", model=model | {"base_models": [{}, {}]}, plan=plan)
    with pytest.raises(WeightsError, match=f"ensemble of slim_resnet and {OTHER}, not ensemble of slim_resnet and sl"):
        initialise(wrong)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input": {"kind": "image", "size": 48}}, r"base_models\.0 .*slim.*other input than the study's.*'size': 32"),
        (
            {"input": {"kind": "image", "size": 32, "normalise": "fixed"}},
            r"base_models\.0 .*other input.*'normalise': 'zscore'.*'normalise': 'fixed'",
        ),
        ({"tasks": [{"name": "cls", "classes": ["left", "right"]}]}, r"base_models\.0 .*no head for task 'cls'"),
        ({"seed": 4}, r"base_models\.0 .*split by seed 3, .*this study by seed 4.*tested here"),
        ({"split": {"train": 0.4, "val": 0.35, "test": 0.25}}, r"base_models\.0 .*0\.5 train.*tested here"),
    ],
)
def test_members_that_do_not_fit_are_refused_by_name(make_study, base_models, changes, says) -> None:
    study = make_study(name="odd", model=ensemble(base_models), method="average_ensemble", **changes)
    with pytest.raises(StudyError, match=f"(?s){says}"):
        check_study(study, "here")


def test_members_of_a_plain_study_have_seen_patients_that_a_private_one_tests(make_study, base_models) -> None:
    """Patients who each stand alone are split otherwise than those who are dealt out, from the same seed."""
    local = {"kind": "gradient", "train": "heads", "steps": 1, "fixed_norm_stats": True}
    terms = {"private": {"noise_multiplier": 1.0, "sample_rate": 0.5}}
    plan = [{"name": "heads", "local": local | terms, "share": "heads", "aggregate": {"kind": "mean"}}]
    with pytest.raises(StudyError, match=r"base_models\.0 .*each patient alone.*tested here.*both or none be private"):
        check_study(make_study(name="odd", model=ensemble(base_models), plan=plan), "here")
    check_study(make_study(name="else", model=ensemble(base_models, elsewhere=True), plan=plan), "here")


def test_a_member_of_another_backbone_than_said_is_refused(make_study, base_models) -> None:
    model = {"backbone": "ensemble", "base_models": [str(base_models[0]), str(base_models[1])]}
    with pytest.raises(StudyError, match=rf"base_models\.1 .*is a {OTHER}, but the study says slim_resnet"):
        check_study(make_study(name="odd", model=model, method="average_ensemble"), "here")


def test_a_member_that_learnt_elsewhere_may_have_been_split_otherwise(make_study, base_models) -> None:
    model = ensemble(base_models, elsewhere=True)
    check_study(make_study(name="else", seed=4, model=model, method="average_ensemble"), "here")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"backbone": "ensemble"}, "go together"),
        ({"backbone": "slim_resnet", "base_models": ["a", "b"]}, "go together"),
        ({"backbone": "ensemble", "base_models": ["a"]}, "two or more"),
        ({"backbone": "ensemble", "base_models": ["a", {"backbone": "resnet18"}]}, r"base_models\.1: needs `weights`"),
        ({"backbone": "ensemble", "base_models": ["a", {"weights": "b", "backbone": "ensemble"}]}, "of another"),
    ],
)
def test_ensembles_that_make_no_sense_are_refused_when_read(make_study, model, says) -> None:
    with pytest.raises(StudyError, match=says):
        make_study(model=model, method="average_ensemble")


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"local": {"kind": "recalibrate"}, "keep": "norm_stats"}, "recalibrate each in a run of its own"),
        ({"local": {"kind": "gradient", "train": "norm", **LOCAL}}, "nothing but heads can be trained on an ensemble"),
        (
            {"local": {"kind": "statistics"}, "share": "heads", "aggregate": {"kind": "ridge"}},
            "has learnt these cases.*split: val",
        ),
        ({"local": {"kind": "statistics", "of": "base_models"}, "aggregate": {"kind": "temper"}}, "split: val"),
        (
            {"local": {"kind": "statistics", "of": "base_models", "split": "val"}, "aggregate": {"kind": "ridge"}},
            "aggregated by temper, not by ridge",
        ),
        (
            {"local": {"kind": "statistics", "of": "answers", "split": "val"}, "aggregate": {"kind": "temper"}},
            "the calibrated heads must reach the sites",
        ),
        (
            {
                "local": {"kind": "statistics", "of": "base_models", "split": "val", "private": {"epsilon": 1.0}},
                "aggregate": {"kind": "temper"},
            },
            "losses have no bound that could be noised",
        ),
    ],
)
def test_stages_that_cannot_work_on_an_ensemble_are_refused(make_study, base_models, stage, says) -> None:
    # A private study splits patients as none of these runs did.
    more = {"elsewhere": True} if "private" in stage["local"] else {}
    study = make_study(name="odd", model=ensemble(base_models, **more), plan=[{"name": "odd", **stage}])
    with pytest.raises(StudyError, match=f"(?s){says}"):
        check_study(study, "here")


def test_temperatures_of_members_need_members_and_validation_cases(make_study) -> None:
    stage = {
        "name": "t",
        "local": {"kind": "statistics", "of": "base_models", "split": "val"},
        "aggregate": {"kind": "temper"},
    }
    split = {"train": 0.7, "val": 0.0, "test": 0.3}
    with pytest.raises(StudyError, match=r"(?s)those of an ensemble.*split\.val is 0"):
        check_study(make_study(plan=[stage], split=split, evaluate={"every": 0}), "here")


@pytest.mark.slow
def test_a_policy_sees_every_member_and_the_teacher(hospitals, make_study, base_models, tmp_path) -> None:
    """A site that runs slim_resnet alone takes no part in an ensemble with another, nor learns from one."""
    policy = OPEN.model_copy(update={"backbones": ("slim_resnet",)})
    strict = replace(hospitals, policies=dict.fromkeys(hospitals.cohorts, policy))
    study = make_study(name="average", model=ensemble(base_models), method="average_ensemble")
    taught = make_study(name="taught", method=TRAINED | {"name": "distill", "teacher": ensemble(base_models)})
    for at, one in enumerate((study, taught)):
        with pytest.raises((QuorumError, RunError), match="policy"):
            simulate(one, strict, tmp_path / f"strict{at}")
    both = SitePolicy.model_validate(policy.model_dump() | {"backbones": ("slim_resnet", OTHER)})
    wide = replace(hospitals, policies=dict.fromkeys(hospitals.cohorts, both))
    assert read_json(simulate(study, wide, tmp_path / "wide") / "result.json")["status"] == "completed"


@pytest.mark.slow
def test_explain_says_it_in_plain_words(make_study, base_models) -> None:
    study = make_study(name="stacked", model=ensemble(base_models), method="stacked_ensemble")
    explained = explain(study, "here")
    told = [sentence(stage, row) for stage, row in zip(study.plan, explained.rows, strict=True)]
    assert told[0].startswith("Sites with labels send the loss of each base model at each temperature of a grid")
    assert "sums of features and of what the heads get wrong on their validation cases, 5 times" in told[1]
    assert "each time a step towards a logistic head" in told[1]
    assert "ridge penalty that does best on sites left out" in told[1]
    assert "the temperature that fits all sites' cases best" in told[2]
    assert explained.start.provenance.says == "slim and other"
    taught = make_study(name="taught", method=TRAINED | {"name": "distill", "teacher": ensemble(base_models)})
    row = explain(taught, "here").rows[0]
    assert f"the answers of the ensemble {base_models[0]} + {base_models[1]}, softened by 2" in row["local"]


@pytest.mark.slow
def test_an_ensemble_of_tables_keeps_each_base_models_own_scale(make_study, tmp_path) -> None:
    from helpers.tables import tables

    sites = tables(tmp_path / "tables")
    base = {"tasks": [{"name": "cls", "classes": ["a", "b"]}], "input": {"kind": "table", "numeric": ["one", "two"]}}
    runs = []
    for backbone in ("table_linear", "table_mlp"):
        study = make_study(name=backbone, model={"backbone": backbone}, method=TRAINED, **base)
        runs.append(simulate(study, sites, tmp_path / backbone))
    named = [{"weights": str(run), "backbone": run.name} for run in runs]
    model = {"backbone": "ensemble", "base_models": named}
    study = make_study(name="tables", model=model, method="stacked_ensemble", **base)
    state = load_tensors(simulate(study, sites, tmp_path / "stack") / "model.safetensors")
    for at, run in enumerate(runs):
        own = load_tensors(run / "model.safetensors")
        for key in ("mean", "std"):
            np.testing.assert_array_equal(
                state[f"backbone.base_models.{at}.backbone.standardise.{key}"], own[f"backbone.standardise.{key}"]
            )
    other = base | {"input": {"kind": "table", "numeric": ["two", "one"]}}
    with pytest.raises(StudyError, match="other input than the study's"):
        check_study(make_study(name="odd", model=model, method="stacked_ensemble", **other), "here")


def test_an_ensemble_rests_whatever_is_asked(make_study, base_models) -> None:
    model = make_model(make_study(name="average", model=ensemble(base_models), method="average_ensemble"))
    model.freeze(frozenset(model.state_dict()))
    model.train()
    assert isinstance(model.backbone, Ensemble)
    assert not any(part.training for part in model.backbone.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(4, 1, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_study_without_an_ensemble_has_the_digest_that_it_had() -> None:
    study = parse_study({"name": "x", "tasks": [{"classes": ["a", "b"]}], "method": "gradual_unfreezing"}, "here")
    assert study.digest == DIGEST


DIGEST = "11fa071761c0114b501543b4a10edd95c030c8acaa01c0527d1bf22c374c74b4"


@pytest.fixture(scope="module")
def one_blank(hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    """The same hospitals, one of them without a label."""
    root = hospitals.cohorts["west"].root
    table = tmp_path_factory.mktemp("blank") / "west.csv"
    table.write_text("path,cls\n" + "".join(f"{p.relative_to(root)},\n" for p in sorted(root.rglob("*.png"))))
    blank = CohortSpec(kind="images", root=root, labels=table, join="path")
    return replace(hospitals, cohorts={**hospitals.cohorts, "west": blank})


@pytest.mark.slow
def test_a_student_learns_at_sites_without_labels_and_its_teacher_travels_once(
    one_blank, make_study, base_models, tmp_path
) -> None:
    study = make_study(
        name="student", method=TRAINED | {"name": "distill", "teacher": ensemble(base_models), "rounds": 3}
    )
    run = simulate(study, one_blank, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert all(row["sites_aggregated"] == ["east", "north", "south", "west"] for row in rows)
    teachers = sum((one / "model.safetensors").stat().st_size for one in base_models)
    student = (run / "model.safetensors").stat().st_size
    assert rows[0]["bytes_down"] > 4 * 0.9 * (teachers + student)
    assert all(row["bytes_down"] < 4 * 1.2 * student for row in rows[1:])
    state = load_tensors(run / "model.safetensors")
    assert set(state) == set(make_model(study).state_dict())
    manifest = read_json(run / "model.json")
    assert manifest["backbone"] == "slim_resnet"
    assert "base_models" not in manifest


def test_heads_learn_from_a_teacher_where_nobody_has_a_label(hospitals, make_study, base_models, tmp_path) -> None:
    cohorts = {}
    for site in ("east", "west"):
        root = hospitals.cohorts[site].root
        table = tmp_path / f"{site}.csv"
        table.write_text("path,cls\n" + "".join(f"{p.relative_to(root)},\n" for p in sorted(root.rglob("*.png"))))
        cohorts[site] = CohortSpec(kind="images", root=root, labels=table, join="path")
    study = make_study(
        name="student", method=TRAINED | {"name": "distill", "teacher": str(base_models[0]), "rounds": 1}
    )
    state = load_tensors(simulate(study, Hospitals(cohorts), tmp_path / "run") / "model.safetensors")
    before = initialise(study).state()
    assert not np.array_equal(state["heads.cls.weight"], before["heads.cls.weight"])
    assert not np.array_equal(state["backbone.conv1.weight"], before["backbone.conv1.weight"])


@pytest.mark.slow
def test_a_student_that_was_cut_off_ends_the_same(hospitals, make_study, base_models, tmp_path) -> None:
    study = make_study(name="student", method=TRAINED | {"name": "distill", "teacher": str(base_models[0])})
    whole = load_tensors(simulate(study, hospitals, tmp_path / "whole") / "model.safetensors")
    silent = {site: Fault(kind="silent", rounds=(2,)) for site in ("east", "north", "south")}
    with pytest.raises(QuorumError):
        simulate(study, replace(hospitals, faults=silent), tmp_path / "run")
    facts = read_json(tmp_path / "run" / "simulation.json")
    write_json(tmp_path / "run" / "simulation.json", facts | {"faults": {}})
    resume(tmp_path / "run")
    for key, array in load_tensors(tmp_path / "run" / "model.safetensors").items():
        assert array.tobytes() == whole[key].tobytes(), key


def test_a_finished_ensemble_teaches_as_one_model(make_study, stacked) -> None:
    model = {"backbone": "ensemble", "weights": str(stacked[1]), "base_models": [{}, {"backbone": OTHER}]}
    study = make_study(name="student", method=TRAINED | {"name": "distill", "teacher": model})
    taught = teach(study, study.plan[0])
    for key, array in load_tensors(stacked[1] / "model.safetensors").items():
        assert taught[key].tobytes() == array.tobytes()
    odd = make_study(name="odd", seed=4, method=TRAINED | {"name": "distill", "teacher": model})
    with pytest.raises(StudyError, match="split by seed 3"):
        check_study(odd, "here")
    check_study(make_study(seed=4, method=TRAINED | {"name": "distill", "teacher": model | {"elsewhere": True}}), "x")


def test_a_method_that_needs_a_teacher_says_so(make_study) -> None:
    with pytest.raises(StudyError, match="distill needs a `teacher`"):
        make_study(method=TRAINED | {"name": "distill"})


@pytest.mark.slow
def test_a_soup_starts_a_study_that_recalibrates_it(
    command: Command, hospitals, make_study, base_models, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    other = simulate(make_study(name="slim2", method=TRAINED | {"name": "fedprox"}), hospitals, tmp_path / "slim2")
    code, out, err = command("weights", "soup", base_models[0], other, "--id", "broth")
    assert code == 0, err
    assert "recalibrate" in out
    plan = [{"name": "adapt", "local": {"kind": "recalibrate"}, "keep": "norm_stats"}]
    model = {"backbone": "slim_resnet", "weights": "broth", "heads": "weights"}
    run = simulate(make_study(name="soup", model=model, plan=plan), hospitals, tmp_path / "run")
    parts = [load_tensors(one / "model.safetensors") for one in (base_models[0], other)]
    for key, array in load_tensors(run / "model.safetensors").items():
        if "num_batches" not in key:
            np.testing.assert_allclose(array, (parts[0][key] + parts[1][key]) / 2, rtol=1e-5, atol=1e-6)
    assert read_json(run / "result.json")["status"] == "completed"
    code, _, err = command("weights", "soup", base_models[0], base_models[1], "--id", "odd")
    assert code == 2
    assert "differs from" in err
