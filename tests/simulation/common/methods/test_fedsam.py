"""FedSAM against a few lines of NumPy from its paper, through whole runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedgraft.common.base.files import load_tensors
from fedgraft.simulations.engines.run import Hospitals
from helpers.simulated import simulate
from helpers.tables import Trial, sgd, slope, study, trial
from helpers.work import MakeStudy

STEPS, LR, ROUNDS, RHO = 4, 0.3, 4, 0.8
STAGE = {"name": "train", "rounds": ROUNDS, "share": "all", "aggregate": {"kind": "mean"}}


def fedsam(t: Trial, rho: float = RHO) -> np.ndarray:
    """Qu et al. 2022, algorithm 1, over full batches."""
    w = t.first
    for _ in range(ROUNDS):
        ends = []
        for z, y in t.cases.values():
            v = w.copy()
            for _ in range(STEPS):
                g = slope(v, z, y)
                v = v - LR * slope(v + rho * g / np.sqrt((g**2).sum()), z, y)
            ends.append(v)
        w = np.einsum("k,kij->ij", t.weights, ends)
    return w


def test_a_run_follows_the_paper(tmp_path: Path) -> None:
    t = trial(study(STAGE | {"local": sgd(STEPS, LR, methods=[{"kind": "fedsam", "rho": RHO}])}), tmp_path)
    assert np.abs(t.last - fedsam(t)).max() < 2e-5
    assert np.abs(t.last - fedsam(t, rho=1e-9)).max() > 1e-2


def test_running_statistics_are_moved_by_one_pass_a_step(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path
) -> None:
    """As many batches are counted as FedAvg counts, though each is passed twice."""
    found = {}
    few = Hospitals({name: hospitals.cohorts[name] for name in ("east", "west")})
    for name in ("fedavg", "fedsam"):
        method = {"name": name, "rounds": 1, "local": {"steps": 3, "batch_size": 8, "lr": 1e-9, "optimiser": "sgd"}}
        run = simulate(make_study(method=method), few, tmp_path / name)
        found[name] = load_tensors(run / "model.safetensors")
    statistics = [key for key in found["fedavg"] if "running" in key or "num_batches" in key]
    assert statistics
    for key in statistics:
        np.testing.assert_allclose(found["fedsam"][key], found["fedavg"][key], rtol=1e-4, atol=1e-5)
