"""FedALA against a few lines of NumPy from its paper, through whole runs: what sites keep and answer with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.personal import accuracies, answering, remembered, reported
from helpers.tables import Trial, sgd, slope, study, trial

STEPS, LR, ROUNDS, ETA = 4, 0.4, 4, 6.0
METHOD = {"kind": "fedala", "height": 0, "eta": ETA, "share": 1.0, "passes": 2}
STAGE = {"name": "train", "rounds": ROUNDS, "share": "all", "aggregate": {"kind": "mean"}}


def fedala(t: Trial) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Zhang et al. 2023, algorithm 1, over full batches: the common head, and the sites' last ones and weights."""
    w = t.first
    last = {site: w.copy() for site in t.cases}
    weights = {site: np.ones_like(w) for site in t.cases}
    for number in range(ROUNDS):
        ends = []
        for site, (z, y) in t.cases.items():
            gap = w - last[site]
            if number > 0:
                for _ in range(2):
                    here = last[site] + gap * weights[site]
                    weights[site] = np.clip(weights[site] - ETA * slope(here, z, y) * gap, 0, 1)
            v = last[site] + gap * weights[site]
            for _ in range(STEPS):
                v = v - LR * slope(v, z, y)
            last[site] = v
            ends.append(v)
        w = np.einsum("k,kij->ij", t.weights, ends)
    return w, last, weights


def test_a_run_follows_the_paper_and_sites_answer_with_their_mix(tmp_path: Path) -> None:
    t = trial(study(STAGE | {"local": sgd(STEPS, LR, methods=[METHOD])}), tmp_path)
    w, last, weights = fedala(t)
    assert np.abs(t.last - w).max() < 2e-5
    mixes = {}
    for site in t.cases:
        assert np.abs(remembered(t, site, "fedala", "entries") - last[site]).max() < 2e-5
        assert np.abs(remembered(t, site, "fedala", "weights") - weights[site]).max() < 2e-4
        mixes[site] = last[site] + (w - last[site]) * weights[site]
    assert any(0.01 < found.mean() < 0.99 for found in weights.values()), "nothing was mixed"
    assert reported(t) == accuracies(t, mixes)
    for site, mix in mixes.items():
        assert np.abs(answering(t, site) - mix).max() < 2e-4
