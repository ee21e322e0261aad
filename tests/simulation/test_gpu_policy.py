"""A site that trains on a GPU or not at all says so when there is none, and the others go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedgraft.simulations.engines.run import prepare
from helpers.simulated import resume


@pytest.mark.parametrize("asked", ["cuda", "cuda:7"])
def test_a_site_without_its_gpu_refuses_and_does_not_fall_back(
    make_study, hospitals, tmp_path: Path, monkeypatch, asked
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = tmp_path / "run"
    prepare(make_study(), hospitals, run)
    path = run / "sites" / "east" / "site.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": asked}))
    resume(run)
    result = json.loads((run / "result.json").read_text())
    assert "east, no_gpu" in result["headline"]
    assert set(result["sites"]) == {"north", "south", "west"}
    assert f"there is no device {asked}" in (run / "sites" / "east" / "site.log").read_text()
