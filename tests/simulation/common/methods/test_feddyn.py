"""FedDyn against a few lines of NumPy from its paper, through whole runs: in the open, under masks, with noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.losses.base import VisitContext
from fedgraft.client.training.model.bound import bound
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.methods.feddyn import Slopes
from fedgraft.common.protocol.states import States
from helpers.dp import private_work
from helpers.tables import Trial, sgd, slope, study, trial
from helpers.work import CPU, NOW, MakeStudy, cohort, images, snapshot

STEPS, LR, ROUNDS, ALPHA = 4, 0.3, 5, 0.5
DYN = {"methods": [{"kind": "feddyn", "alpha": ALPHA}]}


def stage(local: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "train", "local": local, "rounds": ROUNDS, "share": "all", "aggregate": {"kind": "mean"}} | more


def feddyn(t: Trial, rounds: int = ROUNDS, alpha: float = ALPHA) -> np.ndarray:
    """Acar et al. 2021, algorithm 1, with some gradient steps in place of the argmin."""
    theta, h = t.first, np.zeros_like(t.first)
    kept = {site: np.zeros_like(theta) for site in t.cases}
    for _ in range(rounds):
        ends = []
        for site, (z, y) in t.cases.items():
            v = theta.copy()
            for _ in range(STEPS):
                v = v - LR * (slope(v, z, y) - kept[site] + alpha * (v - theta))
            kept[site] = kept[site] - alpha * (v - theta)
            ends.append(v)
        mean = np.einsum("k,kij->ij", t.weights, ends)
        h = h - alpha * (mean - theta)
        theta = mean - h / alpha
    return theta


@pytest.mark.parametrize("secure_aggregation", [False, True])
def test_a_run_follows_the_paper_in_the_open_and_under_masks(tmp_path: Path, secure_aggregation: bool) -> None:
    t = trial(study(stage(sgd(STEPS, LR, **DYN)), secure_aggregation=secure_aggregation), tmp_path)
    assert np.abs(t.last - feddyn(t)).max() < 2e-5
    assert np.abs(t.last - feddyn(t, alpha=1e-9)).max() > 1e-2


@pytest.mark.slow
def test_it_comes_to_rest_where_the_mean_slope_is_0_and_fedavg_does_not(tmp_path: Path) -> None:
    found = {}
    for name, more in (("fedavg", {}), ("feddyn", DYN)):
        t = trial(study(stage(sgd(30, LR, **more), rounds=15)), tmp_path / name)
        slopes = [slope(t.last, z, y) for z, y in t.cases.values()]
        found[name] = np.linalg.norm(np.einsum("k,kij->ij", t.weights, slopes))
    assert found["feddyn"] < 0.1 * found["fedavg"], found


def test_with_noise_its_pull_is_added_after_the_clip(make_study: MakeStudy) -> None:
    """With no more than 1e-9 left of gradients and noise, a visit goes where alpha (y - x) - g alone leads."""
    plan = [stage({"kind": "gradient", "steps": 3, "fixed_norm_stats": True, **DYN})]
    asked = make_study(plan=plan)
    inputs, labels = images(27)
    local_model = LocalModel(asked, CPU)
    loader = Loader(cohort(inputs, {"cls": labels}, held_out=6), asked.input, CPU)
    on, start = local_model.ground(asked.plan[0]), snapshot(local_model)
    received = {key: value + np.float32(1) for key, value in start.items()}
    own = States()
    own.put("train", Slopes({key: np.full_like(start[key], 0.25) for key in on.shared}))
    methods = bound(on, 2, received, (own, States()))
    now = replace(NOW, visit_context=VisitContext(received, methods=methods))
    spec = private_work(3, noise_multiplier=1e-9, max_grad_norm=1e-9, lr=0.5, **DYN)
    train_private(local_model, loader, [*map(str, range(27))], spec, on.shared, now)
    gap, after = -1.0, snapshot(local_model)
    for _ in range(3):
        gap -= 0.5 * (ALPHA * gap - 0.25)
    for key in on.shared:
        np.testing.assert_allclose(after[key] - received[key], gap, atol=2e-6)
