"""The comparison on real chest X-rays, as far as it can be carried out in a minute: frozen features and controls."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import load_scenario

pytestmark = pytest.mark.skipif("FEDGRAFT_REAL_DATA" not in os.environ, reason="$FEDGRAFT_REAL_DATA is not set")


def test_four_sites_share_no_patient_and_no_image() -> None:
    seen: dict[str, str] = {}
    sizes = {}
    for site, spec in hospitals_of(load_scenario("cxr")).cohorts.items():
        assert spec.labels is not None
        with spec.labels.open(newline="") as file:
            rows = list(csv.DictReader(file))
        sizes[site] = len(rows)
        for key in {row["patient"] for row in rows} | {row["file"] for row in rows}:
            assert seen.setdefault(key, site) == site
    assert sum(sizes.values()) == 2133
    assert all(abs(sizes[f"{hospital}_a"] - sizes[f"{hospital}_b"]) < 60 for hospital in ("nih", "guangzhou"))


@pytest.mark.slow
def test_the_quick_comparison_holds_frozen_features_against_shortcuts(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet's features beat brightness by far; the page says of what that they are not clearly above a thumbnail."""
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))  # weights are unpacked there
    arms = ("imagenet_probe", "intensity", "thumbnail")
    words = [word for arm in arms for word in ("--arm", arm)]
    out = tmp_path / "compared"
    code, said, err = command("compare", "cxr", "--quick", "--cases", 60, *words, "--out", out, "--json")
    assert code == 0, err
    (question,) = json.loads(said)["questions"]
    rows: dict[str, dict[str, Any]] = {row["arm"]: row for row in question["rows"]}
    assert {row["cases"] for row in rows.values()} == {60}
    probe, control = rows["imagenet_probe"], rows["imagenet_probe"]["control"]
    assert probe["macro"]["value"] > rows["intensity"]["macro"]["value"] + 0.05
    assert min(probe["sites"][site] for site in ("guangzhou_a", "guangzhou_b")) > 0.8
    assert control["control"] == "thumbnail"
    assert control["value"] == pytest.approx(probe["macro"]["value"] - rows["thumbnail"]["macro"]["value"], abs=1e-6)
    assert rows["thumbnail"]["control"] is None
    page = (out / "compare.html").read_text()
    assert ("imagenet_probe at 60 is not clearly above the control thumbnail" in page) is not control["clear"]
    assert "no gradient" in page
