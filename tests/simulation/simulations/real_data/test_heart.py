"""Heart disease at four real hospitals: the logistic regression of all patients at one place, and columns that lack."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from conftest import Command
from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.study.study import find_study
from fedgraft.simulations.engines.run import Hospitals, check_hospitals, simulated_cohort
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import load_scenario
from helpers.simulated import simulate

pytestmark = pytest.mark.skipif("FEDGRAFT_REAL_DATA" not in os.environ, reason="$FEDGRAFT_REAL_DATA is not set")
HEADS = ("heads.disease.weight", "heads.disease.bias")


@pytest.fixture(scope="module")
def hospitals() -> Hospitals:
    return hospitals_of(load_scenario("heart"))


def cases(cohorts: list[Cohort], split: str) -> tuple[np.ndarray, np.ndarray]:
    x = np.vstack([cohort.inputs[cohort.splits[split]].double().numpy() for cohort in cohorts])
    return x, np.concatenate([cohort.targets["disease"][cohort.splits[split]].numpy() for cohort in cohorts])


@pytest.mark.slow
def test_the_federated_logistic_regression_is_the_pooled_one_in_ten_exchanges(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    """To 1e-6 in every probability, against scikit-learn on all training patients; and under secure aggregation."""
    study, _ = find_study(Path("heart"))
    run = simulate(study, hospitals, tmp_path / "plain")
    history = [line for line in (run / "history.jsonl").read_text().splitlines() if '"work": false' not in line]
    assert sum(stage.rounds for stage in study.plan) == 9
    assert len(history) <= 10  # with the exchange in which the end is measured

    cohorts = [simulated_cohort(study, run, site) for site in hospitals.cohorts]
    x, y = cases(cohorts, "train")
    mean, spread = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
    z = np.nan_to_num((x - mean) / np.where(spread > 0, spread, 1.0))
    pooled = LogisticRegression(C=2 / z.shape[1], tol=1e-13, max_iter=10_000).fit(z, y)
    tested = np.nan_to_num((cases(cohorts, "test")[0] - mean) / np.where(spread > 0, spread, 1.0))
    state = load_tensors(run / "model.safetensors")
    said = softmax(tested @ state[HEADS[0]].T.astype(float) + state[HEADS[1]], axis=1)
    np.testing.assert_allclose(said, pooled.predict_proba(tested), atol=1e-6)

    masked = simulate(study.model_copy(update={"secure_aggregation": True}), hospitals, tmp_path / "masked")
    hidden = load_tensors(masked / "model.safetensors")
    assert all(np.allclose(hidden[key], state[key], atol=1e-5) for key in HEADS)
    assert read_json(masked / "result.json")["status"] == "completed"


@pytest.mark.slow
def test_columns_that_a_hospital_has_not_are_missing_values_and_told_before_round_1(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    """The same table with two empty columns, and without them: the same model, bit for bit, and a word about both."""
    study, _ = find_study(Path("heart"))
    with hospitals.cohorts["hungarian"].root.open(newline="") as file:
        rows = list(csv.DictReader(file))
    models, told = [], []
    for keep in (True, False):
        path = tmp_path / f"kept-{keep}.csv"
        with path.open("w", newline="") as file:
            names = [name for name in rows[0] if keep or name not in ("ca", "thal")]
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row | {"ca": "", "thal": ""} for row in rows)
        own = hospitals.cohorts["hungarian"].model_copy(update={"root": path})
        changed = replace(hospitals, cohorts=dict(hospitals.cohorts) | {"hungarian": own})
        said: list[str] = []
        check_hospitals(study, changed, said.append)
        told.append([line for line in said if line.startswith("hungarian")])
        run = simulate(study, changed, tmp_path / f"run-{keep}")
        models.append(load_tensors(run / "model.safetensors"))
    assert told[0] == told[1]
    assert "2 columns without any value (ca, thal)" in told[0][0]
    assert all(np.array_equal(array, models[1][key]) for key, array in models[0].items())


@pytest.mark.slow
def test_both_questions_are_answered_each_with_its_own_columns(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With FLamby's columns all its complete cases are there, though the study's own columns would leave few."""
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    code, out, err = command("compare", "heart", "--seeds", 1, "--only", "flamby", "--out", tmp_path / "c", "--json")
    assert code == 0, err
    (question,) = json.loads(out)["questions"]
    rows = {row["arm"]: row for row in question["rows"]}
    told = " ".join(err.split())
    for name, left_out in (("hungarian", 33), ("switzerland", 77), ("va", 70)):
        assert f"{name}: {left_out} rows left out, in which a value is missing" in told
    assert "cleveland" not in told.partition("left out")[0]
    assert rows["study"]["macro"]["value"] == pytest.approx(rows["pooled"]["macro"]["value"], abs=1e-6)
    assert rows["study"]["macro"]["value"] > 0.7
