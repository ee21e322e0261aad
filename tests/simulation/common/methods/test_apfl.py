"""APFL against a few lines of NumPy from its paper, through whole runs: what sites keep and answer with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedgraft.simulations.engines.run import OPEN
from helpers.personal import accuracies, answering, remembered, reported
from helpers.tables import Trial, sgd, slope, study, trial

STEPS, LR, ROUNDS, ALPHA = 4, 0.5, 4, 0.4
STAGE = {"name": "train", "rounds": ROUNDS, "share": "all", "aggregate": {"kind": "mean"}}


def apfl(t: Trial, *, adaptive: bool) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, float]]:
    """Deng et al. 2020, algorithm 1, over full batches."""
    common, own, alpha = t.first, {}, dict.fromkeys(t.cases, ALPHA)
    for _ in range(ROUNDS):
        ends = []
        for site, (z, y) in t.cases.items():
            w, v = common.copy(), own.get(site, common).copy()
            for _ in range(STEPS):
                a = alpha[site]
                g = slope(a * v + (1 - a) * w, z, y)
                if adaptive:
                    alpha[site] = float(np.clip(a - LR * ((v - w) * g).sum(), 0, 1))
                v, w = v - LR * a * g, w - LR * slope(w, z, y)
            own[site] = v
            ends.append(w)
        common = np.einsum("k,kij->ij", t.weights, ends)
    return common, own, alpha


def test_noised_figures_of_a_mix_that_was_trained_without_noise_are_not_let_out(tmp_path: Path) -> None:
    """The site's own part of the mix follows every training patient: noise for one test patient does not hide that."""
    noised = OPEN.model_copy(update={"metrics": "noised"})
    told = {}
    for kind, methods in (("fedavg", []), ("apfl", [{"kind": "apfl"}])):
        asked = study(STAGE | {"local": sgd(STEPS, LR, methods=methods)})
        t = trial(asked, tmp_path / kind, policies={"west": noised})
        sites = json.loads((t.run / "result.json").read_text())["metrics"]["cls"]["sites"]
        told[kind] = ("west" in sites, "own entries without noise" in (t.run / "sites/west/site.log").read_text())
    assert told == {"fedavg": (True, False), "apfl": (False, True)}


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_run_follows_the_paper_and_sites_answer_with_their_mix(tmp_path: Path, adaptive: bool) -> None:
    method = {"kind": "apfl", "alpha": ALPHA, "adaptive": adaptive}
    t = trial(study(STAGE | {"local": sgd(STEPS, LR, methods=[method])}), tmp_path)
    common, own, alpha = apfl(t, adaptive=adaptive)
    assert np.abs(t.last - common).max() < 2e-5
    for site in t.cases:
        assert np.abs(remembered(t, site, "apfl", "v") - own[site]).max() < 2e-5
        assert np.abs(own[site] - common).max() > 1e-2
    assert (len(set(alpha.values())) > 1) == adaptive
    mixes = {site: alpha[site] * own[site] + (1 - alpha[site]) * common for site in own}
    assert reported(t) == accuracies(t, mixes)
    for site, mix in mixes.items():
        assert np.abs(answering(t, site) - mix).max() < 2e-5
