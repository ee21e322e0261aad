"""Clusters under secure aggregation: groups of sites whose masked sums are compared, against the same in the open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.simulations.engines.run import Engine
from helpers.simulated import resume, simulate, stopped_at
from helpers.tables import populations, sgd, study

SIGNS = {"coast": 1, "hills": -1, "plain": 1}
GROUPS = {group: [f"{group}_{at}" for at in (1, 2, 3)] for group in SIGNS}
SITES = {site: SIGNS[group] for group, sites in GROUPS.items() for site in sites}
PROBE = {"name": "probe", "local": {"kind": "statistics"}, "share": "heads", "aggregate": {"kind": "ridge"}}
TRAIN = {"name": "train", "local": sgd(3, 0.5), "rounds": 2, "share": "all", "aggregate": {"kind": "mean"}}
CLUSTERS = {"by": "sums", "stage": "probe", "groups": GROUPS}


def models(run: Path) -> dict[str, dict[str, np.ndarray]]:
    found = read_json(run / "result.json")["clusters"]["sites"]
    return {"+".join(own): load_tensors(run / "models" / name / "model.safetensors") for name, own in found.items()}


@pytest.mark.slow
def test_groups_that_are_alike_find_each_other_under_masks(tmp_path: Path) -> None:
    """The coordinator sees the sum of each group alone, and puts together what it would put together in the open."""
    there, runs = populations(tmp_path / "data", SITES), {}
    for masks in (False, True):
        asked = study(PROBE, TRAIN, clusters=CLUSTERS, secure_aggregation=masks)
        runs[masks] = simulate(asked, there, tmp_path / str(masks))
    alike = sorted([*GROUPS["coast"], *GROUPS["plain"]])
    for run in runs.values():
        assert sorted(read_json(run / "result.json")["clusters"]["sites"].values()) == [alike, GROUPS["hills"]]
    plain, hidden = (models(run) for run in runs.values())
    for sites, own in plain.items():
        assert all(np.abs(own[key].astype(float) - hidden[sites][key]).max() < 1e-5 for key in own)
    seen = read_json(runs[True] / "result.json")["clusters"]["likeness"]
    assert {(pair["one"], pair["other"]) for pair in seen} == {
        ("coast", "hills"),
        ("coast", "plain"),
        ("hills", "plain"),
    }

    asked = study(PROBE, TRAIN, clusters=CLUSTERS, secure_aggregation=True)
    broken = stopped_at(asked, there, tmp_path / "broken", 4)
    resume(broken, Engine(name="pool", workers=2))
    again = models(broken)
    assert all(np.array_equal(own[key], again[sites][key]) for sites, own in hidden.items() for key in own)


def test_a_site_in_no_group_takes_no_part(tmp_path: Path) -> None:
    there = populations(tmp_path / "data", SITES | {"island": 1})
    run = simulate(study(PROBE, TRAIN, clusters=CLUSTERS), there, tmp_path / "run")
    assert "missing: island, no_cluster" in read_json(run / "result.json")["headline"]
