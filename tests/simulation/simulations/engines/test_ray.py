"""The same study through Flower's own simulation engine gives the same weights."""

import subprocess
import sys

import pytest

from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.simulations.engines.run import Engine
from helpers.plans import MANY_KINDS
from helpers.simulated import simulate

FEDBN = {"name": "fedbn", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("work", [{"method": FEDBN}, {"plan": MANY_KINDS}], ids=["fedbn", "many_kinds"])
def test_ray_gives_identical_weights_and_leaves_nothing_running(hospitals, make_study, tmp_path, work):
    study = make_study(**work)
    here = simulate(study, hospitals, tmp_path / "here")
    there = simulate(study, hospitals, tmp_path / "there", Engine(name="ray", workers=2))
    ours, theirs = (load_tensors(run / "model.safetensors") for run in (here, there))
    assert all((ours[key] == theirs[key]).all() for key in ours)
    assert read_json(here / "result.json")["metrics"] == read_json(there / "result.json")["metrics"]
    _nothing_is_left()


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_very_same_masked_run(hospitals, make_study, tmp_path):
    study = make_study(
        method={"name": "graft", "rounds": 2, "local": {"steps": 2, "batch_size": 8}}, secure_aggregation=True
    )
    here = simulate(study, hospitals, tmp_path / "here")
    there = simulate(study, hospitals, tmp_path / "there", Engine(name="ray", workers=2))
    ours, theirs = (load_tensors(run / "model.safetensors") for run in (here, there))
    assert all((ours[key] == theirs[key]).all() for key in ours)
    assert read_json(here / "result.json")["metrics"] == read_json(there / "result.json")["metrics"]
    _nothing_is_left()


def _nothing_is_left() -> None:
    left = subprocess.run(["pgrep", "-f", "fedgraft-ray-"], capture_output=True, text=True, check=False)
    assert left.stdout == "", f"processes left behind by {sys.executable}"
