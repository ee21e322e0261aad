"""A run's figures, against scikit-learn on the pooled predictions of the model that it left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from fedgraft.client.data.cohorts.batches import to_float
from fedgraft.client.data.cohorts.cohort import CohortRequest, load_cohort
from fedgraft.client.enrolment.config import read_config
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.config.config_files import read_mapping
from fedgraft.common.models.model import build_model, build_table_model, load_arrays
from fedgraft.common.study.study import Study, find_study, parse_study
from fedgraft.simulations.engines.run import Hospitals
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import load_scenario
from helpers.simulated import simulate


def predictions(run: Path, study: Study, site: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets of a site's test cases, from the files of the run alone."""
    config = read_config(run / "sites" / site / "site.json")
    wanted = CohortRequest(study.tasks, study.input, study.split, study.seed)
    cohort = load_cohort(site, config.cohort, wanted, place_of(config, study.digest))
    if study.input.kind == "table":
        model = build_table_model(study.model.backbone, study.heads, study.input.width, 0)
    else:
        model = build_model(study.model.backbone, study.heads, channels=1, seed=0, size=study.input.size)
    load_arrays(model, load_tensors(run / "model.safetensors"))
    task, target = study.tasks[0].name, cohort.targets[study.tasks[0].name]
    at = cohort.splits["test"]
    at = at[target[at] >= 0]
    with torch.inference_mode():
        logits = model.eval()(to_float(cohort.inputs[at], study.input))[task]
    return logits.numpy().astype(np.float64), target[at].numpy()


def wanted(logits: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The same figures by scikit-learn; those of class 1 where there are two."""
    if logits.shape[1] == 2:
        chosen, average = [1], "binary"
    else:
        chosen, average = list(range(logits.shape[1])), "macro"
    shares = torch.from_numpy(logits).softmax(1).numpy()
    guess, classes = logits.argmax(1), range(logits.shape[1])
    one_hot = np.eye(logits.shape[1])[y]
    return {
        "accuracy": sk.accuracy_score(y, guess),
        "balanced_accuracy": sk.balanced_accuracy_score(y, guess),
        "auroc": float(np.mean([sk.roc_auc_score(y == c, shares[:, c]) for c in chosen])),
        "average_precision": float(np.mean([sk.average_precision_score(y == c, shares[:, c]) for c in chosen])),
        "f1": sk.f1_score(y, guess, average=average, zero_division=0),
        "brier": sk.brier_score_loss(y, shares[:, 1]) if len(chosen) == 1 else ((shares - one_hot) ** 2).sum(1).mean(),
        "loss": sk.log_loss(y, shares, labels=list(classes)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("what", ["images", "table"])
def test_the_figures_are_those_of_scikit_learn(hospitals: Hospitals, make_study, tmp_path, what: str):
    if what == "images":
        study, sites = make_study(method="fedavg", evaluate={"floor": 1}), hospitals
    else:
        study = find_study(Path("breast_cancer"), ("method.rounds=2", "evaluate.floor=1"))[0]
        sites = hospitals_of(load_scenario("breast_cancer"))
    run = simulate(study, sites, tmp_path / "run")
    task = study.tasks[0].name
    stated = read_json(run / "result.json")["metrics"][task]
    assert parse_study(read_mapping(run / "study.yaml"), "run").digest == study.digest
    parts = {site: predictions(run, study, site) for site in sites.cohorts}
    whole = tuple(np.concatenate(part) for part in zip(*parts.values(), strict=True))
    for shown, (logits, y) in [(stated["pooled"], whole), *((stated["sites"][s], parts[s]) for s in parts)]:
        assert shown["n"] == len(y)
        if len(np.unique(y)) < logits.shape[1]:
            continue
        for name, value in wanted(logits, y).items():
            near = 2e-3 if name in ("auroc", "average_precision") else 1e-4
            assert shown[name] == pytest.approx(value, abs=near), name
    macro = np.mean([stated["sites"][site]["auroc"] for site in parts])
    assert stated["macro"]["auroc"] == pytest.approx(macro)
    worst = min(stated["sites"], key=lambda site: stated["sites"][site]["auroc"])
    assert stated["worst"]["site"] == worst


def test_real_patients_are_told_apart(tmp_path):
    """569 real patients at four skewed sites: the shipped study gets near what pooled training is known to reach."""
    study = find_study(Path("breast_cancer"))[0]
    run = simulate(study, hospitals_of(load_scenario("breast_cancer")), tmp_path / "run")
    result = read_json(run / "result.json")
    assert result["synthetic"] is False
    assert sum(sum(site["cases"].values()) for site in result["sites"].values()) == 569
    assert result["metrics"]["diagnosis"]["pooled"]["auroc"] > 0.97
    assert result["metrics"]["diagnosis"]["macro"]["balanced_accuracy"] > 0.88


@pytest.mark.slow
def test_an_observer_sees_every_model_and_changes_none(hospitals: Hospitals, make_study, tmp_path):
    """A site that only evaluates gets the model of every exchange, and the others' weights are as without it."""
    study = make_study(method="fedavg")
    trainers = {name: spec for name, spec in hospitals.cohorts.items() if name != "west"}
    watched = simulate(study, Hospitals(hospitals.cohorts, observers=("west",)), tmp_path / "watched")
    alone = simulate(study, Hospitals(trainers), tmp_path / "alone")
    ours, theirs = load_tensors(watched / "model.safetensors"), load_tensors(alone / "model.safetensors")
    assert all((ours[key] == theirs[key]).all() for key in theirs)
    rows = [json.loads(line) for line in (watched / "history.jsonl").read_text().splitlines()]
    assert all(set(row["observers"]["cls"]["sites"]) == {"west"} for row in rows)
    assert all("west" not in row["sites_aggregated"] + row["sites_asked"] for row in rows)
    assert "west" not in read_json(watched / "result.json")["metrics"]["cls"]["sites"]
    assert rows[-1]["observers"]["cls"]["pooled"]["n"] == 36
