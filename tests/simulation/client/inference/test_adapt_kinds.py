"""A model of a class, labels, a value and a mask is fitted to a site's own cases: all of it, or what stays is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Command
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.files import load_tensors
from fedgraft.common.study.study import parse_study
from fedgraft.simulations.engines.run import Hospitals
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario
from helpers.simulated import simulate

WORDS = {"signs.any": {"none": "no", "smooth": "yes", "spiculated": "yes", "ring": "yes"}}
CLASSES = {"name": "diagnosis", "classes": ["none", "smooth", "spiculated", "ring"]}
MASK, VALUE, LABELS = (
    {"name": "lesion", "kind": "segmentation"},
    {"name": "size_mm", "kind": "regression", "unit": "mm", "mean": 26, "std": 16},
    {"name": "signs", "kind": "multilabel", "labels": ["any"]},
)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CohortSpec]:
    phantom = {"patients": 16, "images_per_patient": [1, 1], "modality": "ct"}
    sites = [{"name": name, "phantom": phantom} for name in ("north", "south")]
    made = make_hospitals(
        Scenario.model_validate({"name": "kinds", "sites": sites}), tmp_path_factory.mktemp("m") / "h"
    )
    more = {"label_columns": {"signs.any": "diagnosis"}, "label_map": WORDS}
    return {name: spec.model_copy(update=more) for name, spec in made.items()}


def run_of(tasks: list[dict[str, Any]], cohorts: dict[str, CohortSpec], folder: Path) -> Path:
    study = parse_study(
        {
            "name": "kinds",
            "tasks": tasks,
            "input": {"kind": "image", "size": 32},
            "split": {"train": 0.5, "val": 0.25, "test": 0.25},
            "evaluate": {"every": 0, "floor": 1},
            "method": {"name": "fedavg", "rounds": 1, "local": {"steps": 2, "batch_size": 8}, "ood_detection": True},
        },
        "here",
    )
    return simulate(study, Hospitals(cohorts), folder)


@pytest.fixture(scope="module")
def run(cohorts: dict[str, CohortSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of([CLASSES, MASK, VALUE, LABELS], cohorts, tmp_path_factory.mktemp("all") / "run")


def adapted(command: Command, run: Path, *more: object) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    home = run / "sites/north"
    code, out, err = command("site", "adapt", run, "--home", home, "--json", *more)
    assert code == 0, err
    return json.loads(out), load_tensors(next((home / "adapted").glob("*.safetensors")))


@pytest.mark.slow
def test_every_task_is_fitted_and_measured_by_the_metrics_of_its_kind(command: Command, run: Path) -> None:
    facts, entries = adapted(command, run, "--fit", "tune", "--steps", 8, "--lr", 0.01)
    for when in ("before", "after"):
        assert set(facts[when]) == {"diagnosis", "lesion", "size_mm", "signs"}
        assert facts[when]["size_mm"].keys() == {"n", "mae", "rmse", "r2"}
        assert facts[when]["lesion"].keys() == {"n", "dice", "hd95_mm", "missed"}
    state = load_tensors(run / "model.safetensors")
    for task in ("lesion", "size_mm", "signs"):
        own = [key for key in state if key.startswith(f"heads.{task}.")]
        assert any(not np.array_equal(entries[key], state[key]) for key in own), f"{task} was not trained"
    facts, entries = adapted(command, run, "--fit", "ridge")
    assert {key.split(".")[1] for key in entries} == {"diagnosis", "size_mm", "signs"}
    _, entries = adapted(command, run, "--fit", "lda")
    assert {key.split(".")[1] for key in entries} == {"diagnosis"}
    code, out, _ = command("site", "adapt", run, "--home", run / "sites/north", "--fit", "lda")
    assert code == 0
    assert "lesion, size_mm, signs: as they came, since lda solves no heads of their kind" in " ".join(out.split())
    assert "test cases of this site: MAE (mm)" in " ".join(out.split())


@pytest.mark.slow
def test_what_cannot_be_fitted_to_a_kind_is_said_before_anything_is(
    command: Command, run: Path, cohorts: dict[str, CohortSpec], tmp_path: Path
) -> None:
    home = run / "sites/south"
    code, _, err = command("site", "adapt", run, "--home", home, "--shots", 2, "--task", "size_mm")
    assert code == 2
    assert "are so many cases of each class, which size_mm does not ask for" in " ".join(err.split())
    values = run_of([VALUE, MASK], cohorts, tmp_path / "values")
    home = values / "sites/south"
    for words, says in (
        (("--shots", 2), "no task of the model asks for"),
        (("--fit", "ncm"), "solves no head of this model (size_mm, lesion)"),
    ):
        code, _, err = command("site", "adapt", values, "--home", home, *words)
        assert code == 2
        assert says in " ".join(err.split())
    assert not (home / "adapted").exists()
    _, entries = adapted(command, values, "--fit", "ridge")
    assert {key.split(".")[1] for key in entries} == {"size_mm"}
