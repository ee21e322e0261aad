"""Training alone is the one-site federation: the same plan over one hospital gives the same figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedgraft.client.enrolment.cohort_request import read_cohort
from fedgraft.client.enrolment.config import read_site
from fedgraft.client.enrolment.pseudonyms import keep_key
from fedgraft.client.preflight.baseline import check_baseline, train_alone
from fedgraft.client.preflight.report import Level
from fedgraft.common.base.seeds import derive
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Hospitals
from helpers.simulated import simulate
from helpers.site_home import Hospital, study
from helpers.work import CPU

PLANS = {
    "graft": {"method": {"name": "graft", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}},
    "weights": {
        "model": {"backbone": "slim_resnet", "weights": "slim-ctmr-synthetic"},
        "method": {"name": "silobn", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}},
    },
}


def alone(hospital: Hospital, asked: Study, splits: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    config = read_site(hospital.home)
    baseline = train_alone(asked, read_cohort(config, asked, []), CPU, lambda _: None)
    assert baseline.pretrained == (asked.model.weights is not None)
    return {split: baseline.sums[split]["cls"].values() for split in splits}


@pytest.mark.parametrize("plan", PLANS)
def test_training_alone_is_a_federation_of_one(hospital: Hospital, tmp_path: Path, plan: str) -> None:
    asked = study(**PLANS[plan])
    cohort = read_site(hospital.home).cohort
    run = simulate(asked, Hospitals({"north": cohort}), tmp_path / "run")
    federated = json.loads((run / "result.json").read_text())["metrics"]["cls"]["sites"]["north"]
    # The simulation's site has a key that follows from the seed; splits depend on it.
    (hospital.home / "state").mkdir(mode=0o700)
    keep_key(hospital.home / "state", derive(asked.seed, "north", "secret").to_bytes(16, "big"))
    test = alone(hospital, asked, ("test",))["test"]
    assert test["n"] == federated["n"]
    for key in ("auroc", "accuracy", "balanced_accuracy", "loss"):
        assert test[key] == pytest.approx(federated[key], rel=1e-4), key


def test_the_report_says_what_was_reached_and_keeps_nothing(hospital: Hospital) -> None:
    report = hospital.check("connection", baseline=True)
    lines = {line.name: line for part in report.parts for line in part.findings.lines}
    assert lines["baseline_cls"].level is Level.FINE
    figures = lines["baseline_cls"].figures
    assert (figures["val"]["n"], figures["test"]["n"]) == (16, 16)
    assert 0 <= figures["test"]["auroc"] <= 1
    assert [path.name for path in (hospital.home / "state").iterdir()] == ["patients.key"]


def test_without_the_weights_the_report_says_so(hospital: Hospital) -> None:
    asked = study(model={"backbone": "slim_resnet", "weights": "not-here"}, method={"name": "ridge_probe"})
    cohort = read_cohort(read_site(hospital.home), asked, [])
    lines = {line.name: line for line in check_baseline(asked, cohort, CPU, lambda _: None).lines}
    assert lines["baseline_start"].level is Level.NOTE
    assert lines["baseline_cls"].level is Level.FINE


def test_a_site_without_labels_is_told(hospital: Hospital) -> None:
    hospital.write_config(cohort={"labels": None})
    (part,) = hospital.check(against=study(), baseline=True).parts[-1:]
    assert [(line.name, line.level) for line in part.findings.lines] == [("baseline", Level.FAILS)]
