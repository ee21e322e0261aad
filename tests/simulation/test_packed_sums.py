"""What a closed-form head of 512 features costs on its way, and what is lost where it travels with fewer digits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.files import load_tensors
from fedgraft.common.checks.leaving import leaving
from fedgraft.common.models.initialise import make_model
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Hospitals
from helpers.simulated import simulate

MakeStudy = Callable[..., Study]
HEAD = "heads.cls.weight"


def ridge(make: MakeStudy, precision: str) -> Study:
    local = {"kind": "statistics", "precision": precision}
    plan = [{"name": "probe", "where": "labelled", "local": local, "share": "heads", "aggregate": {"kind": "ridge"}}]
    return make(plan=plan, model={"backbone": "resnet18", "weights": None})


@pytest.mark.slow
def test_a_ridge_of_512_features_is_one_mb_or_half_of_it(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path
) -> None:
    heads, most = {}, {"double": 1.09e6, "single": 0.6e6}
    for precision, limit in most.items():
        study = ridge(make_study, precision)
        run = simulate(study, hospitals, tmp_path / precision)
        first = json.loads((run / "history.jsonl").read_text().splitlines()[0])
        sent = first["bytes_up"] / len(hospitals.cohorts)
        said = leaving(study, study.plan[0], make_model(study)).bytes
        assert said < sent < limit, "all of the reply, with its metrics and names"
        heads[precision] = load_tensors(run / "model.safetensors")[HEAD]
    assert heads["double"].shape[1] == 512
    size = float(np.abs(heads["double"]).max())
    apart = float(np.abs(heads["double"] - heads["single"]).max())
    assert 0 < apart < 1e-3 * size
