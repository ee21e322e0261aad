"""What a run reports of tables is what its saved model says, however the keys of the study are ordered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.training.model.evaluate import evaluate
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.files import load_tensors
from fedgraft.common.study.study import read_study
from fedgraft.simulations.engines.run import Hospitals, simulate, simulated_cohort
from helpers.work import CPU

STUDY = """
name: table
seed: 2
tasks: [{name: cls, classes: [a, b]}]
input:
  numeric: [age]
  categorical: {zone: [x, y, z], sex: [f, m], arm: [p, q]}
  kind: table
split: {train: 0.5, val: 0.1, test: 0.4}
model: {backbone: table_linear, weights: null}
plan:
  - {name: columns, local: {kind: statistics, of: columns}, aggregate: {kind: standardise}}
  - name: train
    local: {kind: gradient, steps: 40, batch_size: 64, lr: 0.3, optimiser: sgd}
    share: all
    aggregate: {kind: mean}
    rounds: 3
evaluate: {every: 0}
"""


@pytest.fixture
def sites(tmp_path: Path) -> Hospitals:
    """Two hospitals where each category tells something else of the class."""
    cohorts = {}
    for number, name in enumerate(("east", "north")):
        rng = np.random.default_rng(number)
        label = rng.integers(0, 2, 150)
        zone = (label + (rng.uniform(size=150) < 0.2)) % 3
        sex, arm = (label ^ (rng.uniform(size=150) < 0.1)), (label ^ (rng.uniform(size=150) < 0.4))
        rows = [
            f"p{i},{'ab'[label[i]]},{rng.normal():.4f},{'xyz'[zone[i]]},{'fm'[int(sex[i])]},{'pq'[int(arm[i])]}"
            for i in range(150)
        ]
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["PatientID,cls,age,zone,sex,arm", *rows]) + "\n")
        cohorts[name] = CohortSpec(kind="table", root=path, patient_column="PatientID")
    return Hospitals(cohorts)


def test_the_saved_model_has_the_figures_of_the_run(sites: Hospitals, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    study, _ = read_study(tmp_path / "study.yaml")
    run = simulate(study, sites, tmp_path / "run")
    reported = json.loads((run / "result.json").read_text())["metrics"]["cls"]["sites"]
    kept, _ = read_study(run / "study.yaml")
    for read in (study, kept):
        local_model = LocalModel(read, CPU)
        local_model.load(load_tensors(run / "model.safetensors"))
        for name in sites.cohorts:
            loader = Loader(simulated_cohort(read, run, name), read.input, CPU)
            found = evaluate(local_model, loader, "test")["cls"].values()
            assert found["auroc"] == pytest.approx(reported[name]["auroc"], abs=1e-6)
            assert found["accuracy"] == pytest.approx(reported[name]["accuracy"], abs=1e-6)
            assert found["auroc"] > 0.9
