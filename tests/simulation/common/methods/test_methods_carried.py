"""Whatever a method remembers is carried by one rule: every method that has a file of its own is held to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.errors import StudyError
from fedgraft.common.base.files import load_tensors
from fedgraft.common.checks.explain import check_study, explain, sentence
from fedgraft.common.protocol.states import NoState, is_address
from fedgraft.common.study.stages.methods import METHODS, method_class
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Engine, Hospitals
from helpers.simulated import resume, simulate, stopped_at
from helpers.work import MakeStudy

LOCAL = {"steps": 2, "batch_size": 8, "lr": 0.01, "optimiser": "sgd"}
POOLED = ("feddyn", "fedproto")
"""To start a pool takes longer than the run: one method that remembers at both ends, and one that sends sums."""
NOISE = {"fixed_norm_stats": True, "private": {"epsilon": 8.0, "sample_rate": 0.2}}


def asked(make_study: MakeStudy, kind: str, rounds: int = 3, **more: object) -> Study:
    local = LOCAL | (NOISE if more.pop("noise", False) else {})
    return make_study(method={"name": kind, "rounds": rounds, "local": local}, **more)


def left(run: Path) -> dict[str, bytes]:
    """All that a run leaves behind at both ends: the model, and by site what it keeps and remembers."""
    places = [run / "model.safetensors"]
    places += [sorted(folder.glob("*.safetensors"))[-1] for folder in sorted(run.glob("sites/*/local_state/*"))]
    return {
        f"{place.parts[-4]}/{name}": array.tobytes() for place in places for name, array in load_tensors(place).items()
    }


@pytest.fixture(scope="module")
def three(hospitals: Hospitals) -> Hospitals:
    return Hospitals({name: cohort for name, cohort in hospitals.cohorts.items() if name != "south"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
def test_a_killed_run_that_goes_on_ends_with_the_same_bits(
    three: Hospitals, make_study: MakeStudy, tmp_path: Path, kind: str
) -> None:
    study = asked(make_study, kind)
    whole = left(simulate(study, three, tmp_path / "whole"))
    cut = stopped_at(study, three, tmp_path / "cut", exchange=2)
    assert left(resume(cut, Engine(name="pool" if kind in POOLED else "inprocess"))) == whole
    remembers = getattr(method_class(kind), "own_state", NoState) is not NoState
    assert any(is_address(name) for name in whole) == remembers


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("what", ["masks", "noise"])
def test_masks_and_noise_work_or_are_refused_with_the_reason(
    three: Hospitals, make_study: MakeStudy, tmp_path: Path, kind: str, what: str
) -> None:
    study = asked(make_study, kind, rounds=2, **({"secure_aggregation": True} if what == "masks" else {"noise": True}))
    method = method_class(kind)
    reason = getattr(method, "not_secure" if what == "masks" else "not_private")
    if reason:
        with pytest.raises(StudyError) as caught:
            check_study(study, "study.yaml")
        assert any(f"({kind}): {reason}" in fault for fault in caught.value.faults)
        return
    run = simulate(study, three, tmp_path / what)
    state = load_tensors(run / "model.safetensors")
    assert all(np.isfinite(array).all() for array in state.values())
    if what == "masks":
        open_ = simulate(asked(make_study, kind, rounds=2), three, tmp_path / "open")
        plain = load_tensors(open_ / "model.safetensors")
        assert all(np.allclose(state[key], plain[key], atol=1e-4) for key in plain)


@pytest.mark.parametrize("kind", METHODS)
def test_a_study_says_what_it_does_and_what_travels(make_study: MakeStudy, kind: str) -> None:
    study = asked(make_study, kind)
    (row,) = [row for row in explain(study, "study.yaml").rows if row["name"] == "train"]
    said = study.plan[0].local.methods[0].description  # type: ignore[union-attr]
    assert said in row["local"]
    assert method_class(kind).travels in sentence(study.plan[0], row)  # type: ignore[attr-defined]
    assert Study.parse(study.model_dump(mode="json")) == study
