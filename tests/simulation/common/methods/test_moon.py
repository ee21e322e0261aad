"""MOON against a twin written from its paper, through a whole run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from helpers.mlp import MODEL, Net, apart, cases, descended, features, first, labels_loss, last, mean
from helpers.tables import Trial, sgd, study, trial

STEPS, LR, ROUNDS, MU, T = 3, 0.3, 4, 2.0, 0.4
METHOD = {"kind": "moon", "mu": MU, "temperature": T}
STAGE = {"name": "train", "rounds": ROUNDS, "share": "all", "aggregate": {"kind": "mean"}}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([torch.dot(p, q) / (p.norm() * q.norm()) for p, q in zip(a, b, strict=True)])


def moon(t: Trial, w: Net, mu: float = MU) -> Net:
    """Li et al. 2021, algorithm 1, over full batches."""
    before = dict.fromkeys(t.cases, w)
    for _ in range(ROUNDS):
        ends = []
        for site, (x, y) in cases(t).items():

            def loss(v: Net, site: str = site, x: Tensor = x, y: Tensor = y, common: Net = w) -> Tensor:
                z = features(v, x)
                near = torch.exp(cosine(z, features(common, x)) / T)
                far = torch.exp(cosine(z, features(before[site], x)) / T)
                return labels_loss(v, x, y) + mu * (-torch.log(near / (near + far))).mean()

            end = descended(w, loss, STEPS, LR)
            ends.append(end)
            before[site] = end
        w = mean(ends, t.weights)
    return w


def test_a_run_follows_the_paper(tmp_path: Path) -> None:
    asked = study(STAGE | {"local": sgd(STEPS, LR, methods=[METHOD])}, **MODEL)
    t = trial(asked, tmp_path)
    assert apart(last(t.run), moon(t, first(asked))) < 2e-5
    assert apart(last(t.run), moon(t, first(asked), mu=0.0)) > 1e-3
