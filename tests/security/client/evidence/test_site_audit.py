"""A hospital attacks the model that it helped to train: what was learnt by heart is found, what was private is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from conftest import Command
from fedgraft.common.evidence.signed_parts import read_document


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
