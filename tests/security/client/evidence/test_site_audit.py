"""A hospital attacks the model that it helped to train: what was learnt by heart is found, what was private is not."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Command
from fedgraft.client.attacks.membership import by_likelihood_ratio, by_loss, per_patient, told_apart
from fedgraft.client.attacks.reconstruction import Layer, found_cases
from fedgraft.common.evidence.signed_parts import read_document
from helpers.memorised import hospitals, study
from helpers.simulated import simulate


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A run that learnt patients by heart, and a private one over the same patients."""
    root = tmp_path_factory.mktemp("audited")
    some = hospitals(root / "data")
    return {private: simulate(study(private=private), some, root / str(private)) for private in (False, True)}


def sheet(command: Command, run: Path) -> tuple[int, dict[str, Any], Path]:
    home = run / "sites" / "east"
    code, out, err = command("site", "audit", "--home", home, run, "--json")
    assert code in (0, 1), err
    (path,) = home.rglob("audit.json")
    return code, json.loads(out), path


def test_a_model_that_learnt_patients_by_heart_is_found_out(command: Command, runs: dict[bool, Path]) -> None:
    code, found, path = sheet(command, runs[False])
    rows = {(row["target"], row["attack"]): row for row in found["membership"]}
    best = rows["the final model", "by likelihood ratio"]
    assert code == 1
    assert best["finds_members"]
    assert best["tpr_interval"][0] >= 0.05
    assert best["fpr"] <= 0.01
    assert rows["the final model", "by loss"]["auc_interval"][0] > 0.5
    assert found["reconstruction"]["as_logged"]
    assert not read_document(path).faults()
    # No patient is in it, by number or by hash, and nothing of it is for others to read.
    text = path.read_text() + path.with_suffix(".txt").read_text()
    hashes = re.findall(r"[0-9a-f]{32}", (runs[False] / "sites/east/splits.csv").read_text())
    assert len(hashes) >= 160
    assert not [name for name in ("east-1", "PatientID", *hashes) if name in text]
    assert path.stat().st_mode & 0o077 == 0


def test_of_a_private_model_nobody_is_found(command: Command, runs: dict[bool, Path]) -> None:
    code, found, _ = sheet(command, runs[True])
    assert code == 0
    for row in found["membership"]:
        assert row.get("tpr_interval", [0])[0] < 0.05
    assert "noise" in found["reconstruction"]["not_tested"]
    assert 0 <= found["canaries"]["lower_bound"] <= found["canaries"]["claimed"] <= 6


def test_figures_are_per_patient_and_few_patients_say_nothing() -> None:
    # One patient with a hundred images counts as one: the mean of them, on one side.
    names = ["0a"] * 100 + [f"{at:02x}" for at in range(20, 45)] + [f"{at:02x}" for at in range(60, 85)]
    inside = [True] * 125 + [False] * 25
    found = per_patient([0.1] * 100 + [1.0] * 50, [0] * 150, names, inside)
    assert len(found.loss) == 51
    told = told_apart(by_loss(found), found.member)
    assert told is not None
    assert told.share == pytest.approx(1 / 26)
    few = per_patient([0.1] * 19 + [1.0] * 25, [0] * 44, [f"{at:02x}" for at in range(44)], [True] * 19 + [False] * 25)
    assert told_apart(by_loss(few), few.member) is None


def test_chance_finds_nobody_and_a_shift_of_one_class_is_seen_by_the_ratio_alone() -> None:
    rng = np.random.default_rng(0)
    names = [hashlib.sha256(bytes([at // 256, at % 256])).hexdigest()[:32] for at in range(2000)]
    inside = [at % 2 == 0 for at in range(2000)]
    classes = [at // 2 % 2 for at in range(2000)]
    even = per_patient(rng.gamma(2.0, size=2000), classes, names, inside)
    for score in (by_loss, by_likelihood_ratio):
        told = told_apart(score(even), even.member)
        assert told is not None
        assert not told.finds
        assert abs(told.auc - 0.5) < 0.04
    # The hard class is always far off, and its members less so: against their own class they stand out.
    hard = np.array(classes) == 1
    confidence = rng.normal(np.where(hard, np.where(inside, -4.0, -10.0), 5.0), 1.0)
    odd = per_patient(np.log1p(np.exp(-confidence)), classes, names, inside)
    by_class, plain = (told_apart(score(odd), odd.member) for score in (by_likelihood_ratio, by_loss))
    assert by_class is not None
    assert plain is not None
    assert by_class.share > 0.4
    assert plain.share < 0.05


def test_one_patient_comes_back_from_a_linear_layer_and_a_mean_of_many_does_not() -> None:
    rng = np.random.default_rng(0)
    patients, errors = rng.uniform(size=(60, 200)), rng.normal(size=(60, 2))
    alone = Layer(errors[:1].T @ patients[:1], errors[0], patients)
    assert found_cases({"head": alone}) == {0}
    assert found_cases({"head": Layer(errors.T @ patients, errors.sum(axis=0), patients)}) == set()
