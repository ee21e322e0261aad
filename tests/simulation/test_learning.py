"""The quickstart learns, and for the reasons it gives: from the source model, from the other sites, from the labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.files import read_json
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.study.study import Study, find_study
from fedgraft.simulations.engines.run import Hospitals
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import load_scenario
from helpers.simulated import simulate

SEEDS = (0, 1, 2)
CLASSES = 4


def study(seed: int, *overrides: str) -> Study:
    return find_study(Path("quickstart"), (f"seed={seed}", "evaluate.every=0", *overrides))[0]


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> dict[str, CohortSpec]:
    return make_hospitals(load_scenario("xray5"), tmp_path_factory.mktemp("phantoms") / "xray5")


def test_sums(asked: Study, cohorts: Mapping[str, CohortSpec], out: Path) -> dict[str, ClassificationSums]:
    """The final model's metric sums by site."""
    run = simulate(asked, Hospitals(cohorts), out)
    sites = read_json(run / "result.json")["sums"]["cls"]["sites"]
    return {site: ClassificationSums.from_arrays(plain, CLASSES) for site, plain in sites.items()}


test_sums.__test__ = False  # type: ignore[attr-defined]


def macro(sums: Mapping[str, ClassificationSums]) -> float:
    return float(np.mean([value for one in sums.values() if (value := one.values()["auroc"]) is not None]))


@pytest.fixture(scope="module")
def federated(cohorts, tmp_path_factory) -> dict[int, float]:
    base = tmp_path_factory.mktemp("federated")
    return {seed: macro(test_sums(study(seed), cohorts, base / str(seed))) for seed in SEEDS}


@pytest.mark.learning
def test_the_source_model_helps(cohorts, federated, tmp_path):
    scratch = {
        seed: macro(test_sums(study(seed, "model.weights=null"), cohorts, tmp_path / str(seed))) for seed in SEEDS
    }
    gains = [federated[seed] - scratch[seed] for seed in SEEDS]
    print(f"macro AUROC: grafted {federated}, the same plan from random entries {scratch}")
    assert np.mean(gains) >= 0.10, gains


@pytest.mark.learning
def test_the_other_sites_help(cohorts, federated, tmp_path):
    alone = {}
    for seed in SEEDS:
        sums = {}
        for site, spec in cohorts.items():
            sums |= test_sums(study(seed), {site: spec}, tmp_path / f"{seed}-{site}")
        alone[seed] = macro(sums)
    gains = [federated[seed] - alone[seed] for seed in SEEDS]
    print(f"macro AUROC: federated {federated}, each site alone {alone}")
    assert np.mean(gains) >= 0.03, gains


@pytest.mark.learning
def test_shuffled_labels_teach_nothing(cohorts, tmp_path):
    """Labels are shuffled over a site's patients, so that each site keeps its prevalence and loses its meaning."""
    shuffled = {site: _shuffle(spec, tmp_path / site) for site, spec in cohorts.items()}
    pooled = []
    for seed in SEEDS:
        sums = list(test_sums(study(seed), shuffled, tmp_path / str(seed)).values())
        pooled.append(float(np.mean([one.values()["auroc"] for one in sums if one.n > 15])))
    print(f"macro AUROC with shuffled labels: {pooled}")
    assert abs(np.mean(pooled) - 0.5) <= 0.05, pooled


def _shuffle(spec: CohortSpec, folder: Path) -> CohortSpec:
    assert spec.labels is not None
    with spec.labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    column = "cls" if "cls" in rows[0] else "diagnosis"
    values = np.random.default_rng(0).permutation([row[column] for row in rows])
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row | {column: value} for row, value in zip(rows, values, strict=True))
    return spec.model_copy(update={"labels": folder / "labels.csv"})
