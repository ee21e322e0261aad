"""A method that is installed beside fedgraft, found by its name: what it remembers is carried as that of any other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import fedgraft as fg
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.base.files import load_tensors
from fedgraft.common.checks.check_plugins import pinned
from fedgraft.common.checks.explain import check_study, explain
from fedgraft.common.study.stages.methods import MethodValue
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import OPEN, Hospitals
from helpers.plugins import EXAMPLE, fresh, install, wheel_of
from helpers.simulated import resume, simulate, stopped_at
from helpers.tables import CASES, Trial, sgd, slope, study, trial
from helpers.work import MakeStudy

assert fresh
pytestmark = pytest.mark.usefixtures("fresh")
STEPS, LR, ROUNDS, WEIGHT, DECAY = 3, 0.4, 4, 0.6, 0.25
KEYS = {"weight": WEIGHT, "decay": DECAY}
PLUGINS = ["fedgraft-example==1.0.0"]


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    fresh.syspath_prepend(install(wheel_of(EXAMPLE, tmp_path / "wheels"), tmp_path / "packages"))


def stage(*methods: dict[str, object]) -> dict[str, object]:
    local = sgd(STEPS, LR, methods=list(methods))
    return {"name": "train", "local": local, "rounds": ROUNDS, "share": "all", "aggregate": {"kind": "mean"}}


def lookback(t: Trial) -> np.ndarray:
    w, means = t.first, dict.fromkeys(t.cases, t.first)
    for _ in range(ROUNDS):
        ends = []
        for site, (z, y) in t.cases.items():
            v = w.copy()
            for _ in range(STEPS):
                v = v - LR * (slope(v, z, y) + WEIGHT * (v - means[site]))
            means[site] = DECAY * means[site] + (1 - DECAY) * v
            ends.append(v)
        w = np.einsum("k,kij->ij", t.weights, ends)
    return w


@pytest.mark.slow
def test_a_study_names_it_and_its_memory_is_carried_through_a_kill(
    make_study: MakeStudy, hospitals: Hospitals, tmp_path: Path
) -> None:
    t = trial(study(stage({"kind": "lookback", **KEYS}), plugins=PLUGINS), tmp_path / "table")
    assert np.abs(t.last - lookback(t)).max() < 2e-5
    two = replace(hospitals, cohorts={name: hospitals.cohorts[name] for name in ("east", "north")})
    method = {"name": "lookback", "rounds": 3, "local": {"steps": 2, "batch_size": 8, "lr": 0.01}}
    asked = make_study(method=method, plugins=PLUGINS)
    assert "a pull to where the site has ended (weight 0.1)" in explain(asked, "here").rows[0]["local"]
    whole = load_tensors(simulate(asked, two, tmp_path / "whole") / "model.safetensors")
    cut = resume(stopped_at(asked, two, tmp_path / "cut", exchange=2))
    again = load_tensors(cut / "model.safetensors")
    assert all((whole[key] == again[key]).all() for key in whole)


def test_a_site_whose_policy_lists_another_content_takes_no_part(tmp_path: Path) -> None:
    asked = study(stage({"kind": "lookback", **KEYS}), plugins=PLUGINS, rounds={"min_sites": 2, "quorum": 0.5})
    other = OPEN.model_copy(update={"plugins": {"fedgraft-example": "0" * 64}})
    t = trial(asked, tmp_path / "run", policies={"west": other})
    result = json.loads((t.run / "result.json").read_text())
    assert {(row["site"], row["code"]) for row in result["refusals"]} == {("west", "plugin_digest")}
    rows = [json.loads(line) for line in (t.run / "history.jsonl").read_text().splitlines()]
    assert {*CASES} - {"west"} == set(rows[-1]["sites_asked"])


class Shape(MethodValue):
    """Looks like a method, and does nothing."""

    kind: Literal["shape"] = "shape"

    @property
    def description(self) -> str:
        return "nothing"

    @classmethod
    def stages(cls, method: object) -> tuple[()]:
        return ()


def test_what_is_wrong_is_said_before_the_first_round() -> None:
    def faults(asked: Study) -> str:
        with pytest.raises(StudyError) as caught:
            check_study(asked, "here")
        return str(caught.value)

    unnamed = faults(study(stage({"kind": "lookback"})))
    assert "the method 'lookback' is of fedgraft-example==1.0.0, which the study must name" in unnamed
    with pytest.raises(StudyError) as odd:
        study(stage({"kind": "lookback", "weight": -1.0, "speed": 2}), plugins=PLUGINS)
    assert "weight: Input should be greater than 0" in str(odd.value)
    assert "methods.0.speed" in str(odd.value)
    with pytest.raises(StudyError, match=r"lookbac'.*lookback"):
        study(stage({"kind": "lookbac"}), plugins=PLUGINS)
    fg.register_method("shape", Shape)
    empty = faults(pinned(study(stage({"kind": "shape"}))))
    assert "(shape): is no Method, so that nothing that it does would be done" in empty
    with pytest.raises(InputError, match="fedgraft has a method 'feddyn' itself"):
        fg.register_method("feddyn", Shape)
