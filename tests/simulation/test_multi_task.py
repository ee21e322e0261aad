"""Studies of several kinds of tasks over real phantom DICOM: heads, aggregates, masks, policies, checks and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.data.cohorts.cohort import CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.targets import known
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import WeightsError
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.models.initialise import initialise
from fedgraft.common.study.study import Study, find_study, parse_study
from fedgraft.server.report import build_report
from fedgraft.simulations.engines.run import Hospitals
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario, load_scenario
from helpers.simulated import simulate
from helpers.site_home import Hospital, MakeHospital, copied

SIGNS = {"name": "signs", "kind": "multilabel", "labels": ["any", "hollow"]}
TASKS: list[dict[str, Any]] = [
    {"name": "diagnosis", "classes": ["none", "smooth", "spiculated", "ring"]},
    {"name": "lesion", "kind": "segmentation"},
    {"name": "size_mm", "kind": "regression", "unit": "mm", "mean": 26, "std": 16},
    {"name": "organ", "classes": ["thorax_ct", "brain_mr", "thorax_xr"]},
    SIGNS,
]
WORDS = {
    "signs.any": {"none": "no", "smooth": "yes", "spiculated": "yes", "ring": "yes"},
    "signs.hollow": {"none": "no", "smooth": "no", "spiculated": "no", "ring": "yes"},
}
LOCAL = {"kind": "gradient", "steps": 2, "batch_size": 8, "lr": 0.001, "optimiser": "sgd"}
TUNE = {"name": "tune", "where": "labelled", "local": LOCAL, "share": "all", "aggregate": {"kind": "mean"}}
PROBE = {"name": "probe", "where": "labelled", "local": {"kind": "statistics"}, "share": "heads"}


def study(**changes: Any) -> Study:
    base: dict[str, Any] = {
        "name": "kinds",
        "seed": 1,
        "tasks": TASKS,
        "input": {"kind": "image", "size": 32},
        "split": {"train": 0.5, "val": 0.25, "test": 0.25},
        "model": {"backbone": "slim_resnet", "weights": None},
        "plan": [TUNE | {"rounds": 2}],
        "evaluate": {"floor": 1},
    }
    return parse_study(base | changes, "test")


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CohortSpec]:
    """CT, MR and X-ray; the last hospital has no masks."""
    phantom = {"patients": 24, "images_per_patient": [1, 2], "missing_labels": 0.1}
    sites = [{"name": f"site_{name}", "phantom": {**phantom, "modality": name}} for name in ("ct", "mr", "xr")]
    sites.append({"name": "bare", "phantom": {**phantom, "modality": ["xr", "ct"]}, "mask_images": False})
    scenario = Scenario.model_validate({"name": "kinds", "seed": 2, "sites": sites})
    made = make_hospitals(scenario, tmp_path_factory.mktemp("made") / "hospitals")
    columns = dict.fromkeys(WORDS, "diagnosis")
    return {name: spec.model_copy(update={"label_columns": columns, "label_map": WORDS}) for name, spec in made.items()}


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def heads(run: Path, task: str) -> dict[str, np.ndarray]:
    return {k: v for k, v in load_tensors(run / "model.safetensors").items() if k.startswith(f"heads.{task}.")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mean", "server_optimiser", "median"])
def test_a_site_without_masks_does_not_change_how_the_decoder_is_merged(cohorts, tmp_path: Path, kind: str) -> None:
    """Bit for bit: what is aggregated of the decoder with the site is what is aggregated of it without."""
    aggregate = {"kind": kind} | ({"rule": "adam", "lr": 0.01} if kind == "server_optimiser" else {})
    asked = study(plan=[TUNE | {"aggregate": aggregate}])
    runs = {}
    for name, sites in (("with", list(cohorts)), ("without", [site for site in cohorts if site != "bare"])):
        runs[name] = simulate(asked, Hospitals({site: cohorts[site] for site in sites}), tmp_path / name)
    whole = heads(runs["with"], "lesion")
    assert len(whole) > 8
    for key, array in heads(runs["without"], "lesion").items():
        assert array.tobytes() == whole[key].tobytes(), key
    other = [heads(run, "diagnosis")["heads.diagnosis.weight"] for run in runs.values()]
    assert not np.array_equal(*other)
    row = history(runs["with"])[0]["metrics"]["lesion"]["sites"]
    assert row["bare"]["n"] == 0
    assert row["site_ct"]["n"] > 0


@pytest.mark.slow
def test_a_run_of_all_kinds_leaves_figures_and_a_report_of_all(cohorts, tmp_path: Path) -> None:
    plan = [PROBE | {"aggregate": {"kind": "ridge", "ridge_penalty": "loso"}}, TUNE | {"rounds": 2}]
    run = simulate(study(plan=plan), Hospitals(cohorts), tmp_path / "run")
    result = read_json(run / "result.json")
    assert result["status"] == "completed"
    assert set(history(run)[0]["ridge_penalties"]) == {"diagnosis", "size_mm", "organ", "signs"}
    assert history(run)[1]["ridge_penalties"] == {}
    metrics = result["metrics"]
    assert set(metrics["size_mm"]["macro"]) == {"mae", "rmse", "r2"}
    assert metrics["signs"]["macro"]["auroc"] is not None
    assert metrics["lesion"]["sites"]["bare"]["n"] == 0
    assert metrics["lesion"]["pooled"]["n"] > 10
    assert result["sites"]["bare"]["labels"]["lesion"] == {"known": 0}
    assert (
        result["sites"]["site_ct"]["labels"]["signs"]["any"] > result["sites"]["site_ct"]["labels"]["signs"]["hollow"]
    )
    page = build_report(run).read_text()
    for words in ("macro MAE (mm)", "macro Dice", "HD95 (mm)", "Results: signs", "R²", "ROC, hollow", "false alarms"):
        assert words in page, words


@pytest.mark.slow
def test_masked_and_open_studies_of_all_kinds_give_the_same(cohorts, tmp_path: Path) -> None:
    runs = {
        name: simulate(study(secure_aggregation=name == "secure_aggregation"), Hospitals(cohorts), tmp_path / name)
        for name in ("open", "secure_aggregation")
    }
    models = {name: load_tensors(run / "model.safetensors") for name, run in runs.items()}
    for key, array in models["open"].items():
        assert np.abs(models["secure_aggregation"][key].astype(float) - array).max() < 1e-5, key
    plain, hidden = (read_json(run / "result.json")["metrics"] for run in runs.values())
    for task, own in plain.items():
        assert hidden[task]["sites"] == {}
        for key, value in own["pooled"].items():
            if key not in ("auroc", "average_precision"):  # grids tie the scores of models that hardly tell cases apart
                near = None if value is None else pytest.approx(value, rel=1e-3, abs=1e-3)
                assert hidden[task]["pooled"][key] == near, (task, key)


def test_the_next_study_goes_on_with_all_heads_and_predictions_name_classes(cohorts, tmp_path: Path, command) -> None:
    run = simulate(study(plan=[TUNE]), Hospitals(cohorts), tmp_path / "run")
    held = load_tensors(run / "model.safetensors")
    model = {"backbone": "slim_resnet", "weights": str(run), "heads": "weights"}
    begun = initialise(study(model=model)).state()
    assert all(begun[key].tobytes() == array.tobytes() for key, array in held.items())
    heavier = [task | {"weight": 3} for task in TASKS]
    assert (
        initialise(study(model=model, tasks=heavier)).state()["heads.lesion.last.bias"]
        == held["heads.lesion.last.bias"]
    )
    inches = [task | {"unit": "in"} if task["name"] == "size_mm" else task for task in TASKS]
    with pytest.raises(WeightsError, match="no head for task 'size_mm'"):
        initialise(study(model=model, tasks=inches))
    code, _, err = command("predict", run, cohorts["site_ct"].root, "--out", tmp_path / "said")
    assert code == 0, err
    header = (tmp_path / "said" / "predictions.csv").read_text().splitlines()[0].split(",")
    assert {"diagnosis", "diagnosis:ring", "organ", "organ:brain_mr"} < set(header)
    assert {"size_mm (mm)", "lesion", "signs", "signs:hollow"} < set(header), (
        "values, masks and labels are answered too"
    )


@pytest.mark.parametrize("how", ["shuffled", "hidden"])
def test_experiments_change_labels_of_all_kinds_for_training_alone(cohorts, tmp_path: Path, how: str) -> None:
    asked, found = study(), {}
    wanted = CohortRequest(asked.tasks, asked.input, asked.split, asked.seed, "stratified")
    for train_labels in ("known", how):
        spec = cohorts["site_ct"].model_copy(update={"train_labels": train_labels})
        place = Place(tmp_path / train_labels, tmp_path / "cache", b"0" * 16)
        found[train_labels] = load_cohort("north", spec, wanted, place)
    before, after = found["known"], found[how]
    train, test = before.splits["train"], before.splits["test"]
    for name, target in after.targets.items():
        assert torch.equal(target[test].nan_to_num(-9), before.targets[name][test].nan_to_num(-9))
        if how == "hidden":
            assert not known(target[train]).any()
            assert known(before.targets[name][train]).any()
        elif name != "organ":  # which all patients of one site share
            assert not torch.equal(target[train].nan_to_num(-9), before.targets[name][train].nan_to_num(-9))


@pytest.mark.parametrize("metrics", ["noised", "suppressed"])
def test_a_careful_site_tells_coarse_figures_of_all_kinds_once(cohorts, tmp_path: Path, metrics: str) -> None:
    budget = {"epsilon_per_study": 100.0, "epsilon_lifetime": 100.0, "metrics_epsilon": 50.0, "metrics_lifetime": 100.0}
    policy = SitePolicy(allow_non_dp=True, metrics=metrics, min_patients=1, **budget)
    policies = dict.fromkeys(cohorts, policy)
    asked = study(split={"train": 0.2, "val": 0.1, "test": 0.7}, plan=[TUNE])
    run = simulate(asked, Hospitals(cohorts, policies=policies), tmp_path / "run")
    assert history(run)[0]["metrics"] == {}
    assert history(run)[0]["train"]["site_ct"] == {}
    told = read_json(run / "result.json")["metrics"]
    assert all(told["size_mm"]["sites"]["site_ct"][key] is None for key in ("rmse", "bias", "r2"))
    assert told["size_mm"]["sites"]["site_ct"]["mae"] is not None
    lesion = told["lesion"]["sites"]["site_ct"]
    assert lesion["dice"] is not None
    assert all(lesion[key] is None for key in ("hd95_mm", "missed", "alarms", "loss", "dice_pooled"))
    assert told["signs"]["sites"]["site_ct"]["loss"] is None
    sums = read_json(run / "result.json")["sums"]["lesion"]["sites"]["site_ct"]
    assert sums["true"] == sums["both"] == sums["predicted"] == [0]


@pytest.fixture
def home(cohorts, tmp_path: Path) -> Hospital:
    hospital = copied(cohorts["site_ct"].root.parent, tmp_path)
    more = {
        "mask_images": str(hospital.data / "masks"),
        "label_map": WORDS,
        "label_columns": dict.fromkeys(WORDS, "diagnosis"),
    }
    hospital.write_config(cohort=more)
    return hospital


def test_a_site_checks_its_data_for_all_kinds(home: MakeHospital) -> None:
    plan = [PROBE | {"aggregate": {"kind": "ridge", "ridge_penalty": "loso"}}, TUNE]
    report = home.check("data", "training", "policy", against=study(plan=plan), baseline=True)
    lines = {line.name: line for part in report.parts for line in part.findings.lines}
    assert not [line for line in lines.values() if line.level.name == "FAILS"]
    assert "have a mask" in lines["labels_lesion"].description
    assert "mae" in lines["baseline_size_mm"].description
    assert "dice" in lines["baseline_lesion"].description
    assert lines["classes_signs"].figures["counts"]["hollow"] > 0


@pytest.mark.learning
@pytest.mark.slow
def test_the_study_that_ships_learns_all_that_it_asks(tmp_path: Path) -> None:
    asked, _ = find_study(Path("multi_task"), ())
    made = make_hospitals(load_scenario("modalities"), tmp_path / "hospitals")
    run = simulate(asked, Hospitals(made), tmp_path / "run")
    metrics, first = read_json(run / "result.json")["metrics"], history(run)[0]["metrics"]
    assert metrics["lesion"]["macro"]["dice"] > 0.65
    assert metrics["lesion"]["macro"]["dice"] > (first["lesion"]["macro"]["dice"] or 0) + 0.4
    assert metrics["lesion"]["macro"]["hd95_mm"] < 16  # four pixels
    sizes = read_json(run / "result.json")["sums"]["size_mm"]["pooled"]
    n = sizes["n"][0]
    spread = (sizes["value_squared"][0] / n - (sizes["value"][0] / n) ** 2) ** 0.5
    assert metrics["size_mm"]["pooled"]["rmse"] < 0.8 * spread  # always saying the mean would reach 1.0
    assert metrics["organ"]["pooled"]["accuracy"] > 0.95
    assert metrics["diagnosis"]["macro"]["auroc"] > 0.8
