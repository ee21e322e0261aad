"""Methods in stages whose steps are of two kinds: steps ahead that are taken back, and heads before all else.

Held against a few lines of NumPy and torch, through whole runs of several rounds, so that what is remembered counts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import VisitContext
from fedgraft.client.training.model.bound import bound
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.methods.feddyn import Slopes
from fedgraft.common.protocol.states import States
from fedgraft.common.study.plan import Gradient
from helpers import mlp
from helpers.tables import Trial, sgd, slope, study, trial
from helpers.work import CPU, NOW, MakeStudy, cohort, images, snapshot

STEPS, FIRST, LR, INNER, ROUNDS = 3, 2, 0.3, 0.2, 4
SCAFFOLD = {"methods": [{"kind": "scaffold"}]}
DYN = {"methods": [{"kind": "feddyn", "alpha": 0.5}]}


def stage(local: dict[str, Any]) -> dict[str, Any]:
    return {"name": "train", "local": local, "rounds": ROUNDS, "share": "all", "aggregate": {"kind": "mean"}}


def rates(number: int) -> list[float]:
    """Of a round's steps, by half a cosine over all rounds; steps ahead go with the one that counts."""
    done = [(number + step / STEPS) / ROUNDS for step in range(STEPS)]
    return [LR * 0.5 * (1 + math.cos(math.pi * one)) for one in done]


def scaffold_ahead(t: Trial) -> np.ndarray:
    """Algorithm 1 of SCAFFOLD whose gradients are first-order MAML's, all of them corrected."""
    w, c = t.first, np.zeros_like(t.first)
    own = {site: np.zeros_like(c) for site in t.cases}
    for number in range(ROUNDS):
        ends, moves = [], []
        for site, (z, y) in t.cases.items():
            v, pull = w.copy(), c - own[site]
            for rate in rates(number):
                u = v - INNER * (slope(v, z, y) + pull)
                v = v - rate * (slope(u, z, y) + pull)
            new = own[site] - c + (w - v) / sum(rates(number))
            ends.append(v)
            moves.append(new - own[site])
            own[site] = new
        w, c = np.einsum("k,kij->ij", t.weights, ends), c + np.einsum("k,kij->ij", t.weights, moves)
    return w


def test_scaffold_with_steps_ahead(tmp_path: Path) -> None:
    ahead = {"inner_steps": {"lr": INNER, "steps": 1}, "schedule": "cosine"}
    t = trial(study(stage(sgd(STEPS, LR, **ahead, **SCAFFOLD))), tmp_path)
    assert np.abs(t.last - scaffold_ahead(t)).max() < 2e-5


def parts(w: mlp.Net) -> tuple[set[str], set[str]]:
    heads = {key for key in w if key.startswith("heads")}
    return heads, set(w) - heads


def heads_then_rest(w: mlp.Net, x: torch.Tensor, y: torch.Tensor, pull: Any) -> mlp.Net:
    """Steps on heads alone, then on all else, with what `pull` adds to their gradients."""
    for keys, steps in zip(parts(w), (FIRST, STEPS), strict=True):
        for _ in range(steps):
            g = mlp.slopes(w, lambda net: mlp.labels_loss(net, x, y))
            added = pull(w)
            w = {key: w[key] - LR * (g[key] + added[key]) if key in keys else w[key] for key in w}
    return w


@pytest.mark.parametrize("kind", ["scaffold", "feddyn"])
def test_what_is_remembered_with_heads_first(tmp_path: Path, kind: str) -> None:
    method = SCAFFOLD if kind == "scaffold" else DYN
    asked = study(stage(sgd(STEPS, LR, heads_first=FIRST, **method)), **mlp.MODEL)
    t = trial(asked, tmp_path)
    x, zero = mlp.first(asked), {key: torch.zeros_like(value) for key, value in mlp.first(asked).items()}
    heads, _ = parts(x)
    c, own = dict(zero), {site: dict(zero) for site in t.cases}
    for _ in range(ROUNDS):
        ends = []
        for site, (inputs, classes) in mlp.cases(t).items():
            g = own[site]
            if kind == "scaffold":
                y = heads_then_rest(x, inputs, classes, lambda _, c=c, g=g: {key: c[key] - g[key] for key in c})
                way = {key: LR * (FIRST if key in heads else STEPS) for key in x}
                own[site] = {key: g[key] - c[key] + (x[key] - y[key]) / way[key] for key in x}
            else:
                y = heads_then_rest(x, inputs, classes, lambda w, x=x, g=g: {k: 0.5 * (w[k] - x[k]) - g[k] for k in w})
                own[site] = {key: g[key] - 0.5 * (y[key] - x[key]) for key in x}
            ends.append(y)
        mean = mlp.mean(ends, t.weights)
        if kind == "scaffold":
            c = {key: c[key] + (x[key] - mean[key]) / way[key] - c[key] for key in x}
            x = mean
        else:
            c = {key: c[key] - 0.5 * (mean[key] - x[key]) for key in x}
            x = {key: mean[key] - c[key] / 0.5 for key in x}
    assert mlp.apart(mlp.last(t.run), x) < 1e-4


def test_sharpness_is_of_what_is_trained_and_of_these_steps_alone(make_study: MakeStudy) -> None:
    """Neither gradients of steps before nor pulls on what is frozen now say where FedSAM looks."""
    both = {"methods": [{"kind": "feddyn", "alpha": 0.5}, {"kind": "fedsam", "rho": 0.5}]}
    asked = make_study(plan=[stage({"kind": "gradient", "steps": 2, "fixed_norm_stats": True, **both})])
    inputs, labels = images(24)
    spec = asked.plan[0].local
    assert isinstance(spec, Gradient)

    def gone(first: int | None, visits: int = 1, pull: float = 0.25) -> dict[str, np.ndarray]:
        local_model = LocalModel(asked, CPU)
        loader = Loader(cohort(inputs, {"cls": labels}, held_out=4), asked.input, CPU)
        start, on, own = snapshot(local_model), local_model.ground(asked.plan[0]), States()
        heads = [key for key in on.trained if key.startswith("heads")]
        own.put("train", Slopes({key: np.full_like(start[key], 0.25 if key in heads else pull) for key in on.shared}))
        work = spec.model_copy(update={"heads_first": first, "epochs": None})
        for _ in range(visits):
            local_model.touched(on.changed)
            local_model.load(start)
            visit = VisitContext(start, methods=bound(on, 1, start, (own, States())))
            train(local_model, loader, work, on.trained if first else heads, replace(NOW, visit_context=visit))
        return snapshot(local_model)

    once, again = gone(2), gone(2, visits=2)
    assert all(np.array_equal(once[key], again[key]) for key in once)
    one, other = gone(None), gone(None, pull=5.0)
    assert all(np.array_equal(one[key], other[key]) for key in one)
