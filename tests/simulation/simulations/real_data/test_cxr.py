"""The comparison on real chest X-rays, as far as it can be carried out in a minute or so: few cases, and one seed."""

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
def test_the_quick_comparison_holds_training_and_frozen_features_against_shortcuts(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From random entries, in two steps from ImageNet's weights, their features frozen: all beat brightness by far.

    The page says of what that they are not clearly above a thumbnail, and that one seed decides nothing.
    """
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))  # weights are unpacked there
    arms = ("scratch", "study", "imagenet_probe", "intensity", "thumbnail")
    words = ["--only", "start", "--cases", 30, *(word for arm in arms for word in ("--arm", arm))]
    out = tmp_path / "compared"
    code, said, err = command("compare", "cxr", "--quick", *words, "--out", out, "--json")
    assert code == 0, err
    (question,) = json.loads(said)["questions"]
    rows: dict[str, dict[str, Any]] = {row["arm"]: row for row in question["rows"]}
    assert (tuple(rows), {row["cases"] for row in rows.values()}) == (arms, {30})
    page = (out / "compare.html").read_text()
    shortcut = rows["thumbnail"]["macro"]["value"]
    for arm in ("scratch", "study", "imagenet_probe"):
        model, control = rows[arm], rows[arm]["control"]
        assert model["macro"]["value"] > rows["intensity"]["macro"]["value"] + 0.05
        assert min(model["sites"][site] for site in ("guangzhou_a", "guangzhou_b")) > 0.8
        assert control["control"] == "thumbnail"
        assert control["value"] == pytest.approx(model["macro"]["value"] - shortcut, abs=1e-6)
        assert (f"{arm} at 30 is not clearly above the control thumbnail" in page) is not control["clear"]
    assert rows["thumbnail"]["control"] is None
    assert rows["scratch"]["macro"]["value"] > shortcut
    assert {rows[arm]["difference"]["verdict"] for arm in arms[1:]} == {"one seed decides nothing"}
    assert "no gradient" in page
