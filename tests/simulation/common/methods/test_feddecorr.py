"""FedDecorr: its loss by plain loops, and what training makes of features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import VisitContext
from fedgraft.client.training.model.bound import bound
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.methods.feddecorr import FedDecorr
from fedgraft.common.protocol.states import States
from helpers.work import CPU, NOW, MakeStudy, cohort, images, snapshot


@dataclass(frozen=True)
class Seen:
    features: torch.Tensor | None
    batch: Any = None
    outputs: Any = None


def by_loops(z: np.ndarray) -> float:
    """1/d^2 sum over pairs of features of their squared correlation over the batch."""
    d, total = z.shape[1], 0.0
    for i in range(d):
        for j in range(d):
            a, b = z[:, i] - z[:, i].mean(), z[:, j] - z[:, j].mean()
            total += ((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())) ** 2
    return total / d**2


def test_the_loss_is_the_papers() -> None:
    z = np.random.default_rng(3).normal(size=(9, 4)) @ np.diag([1, 2, 3, 40])
    z[:, 1] += 3 * z[:, 0]
    loss = FedDecorr(beta=0.5).step(None, None).loss  # type: ignore[arg-type]
    assert loss is not None
    assert float(loss(Seen(torch.tensor(z)))) == pytest.approx(0.5 * by_loops(z), rel=1e-5)
    assert float(loss(Seen(torch.tensor(z[:1])))) == 0


def test_features_that_were_trained_with_it_say_less_of_the_same(make_study: MakeStudy) -> None:
    inputs, labels = images(48, seed=1)
    other, _ = images(48, seed=2)
    found = {}
    for beta in (0.0, 0.5):
        methods = [{"kind": "feddecorr", "beta": beta}] if beta else []
        local = {"kind": "gradient", "steps": 30, "batch_size": 24, "lr": 0.02, "momentum": 0, "optimiser": "sgd"}
        stage = {"name": "train", "local": local | {"methods": methods}, "share": "all", "aggregate": {"kind": "mean"}}
        study = make_study(plan=[stage])
        local_model = LocalModel(study, CPU)
        received = snapshot(local_model)
        methods_ = bound(local_model.ground(study.plan[0]), 1, received, (States(), States()))
        now = replace(NOW, visit_context=VisitContext(received, methods=methods_))
        loader = Loader(cohort(inputs, {"cls": labels}), study.input, CPU)
        train(local_model, loader, study.plan[0].local, list(local_model.tags), now)  # type: ignore[arg-type]
        (batch,) = Loader(cohort(other, {"cls": labels}), study.input, CPU).batches([torch.arange(48)])
        with torch.no_grad():
            found[beta] = by_loops(local_model.model.train().features(batch.inputs).double().numpy())
    assert found[0.5] < 0.8 * found[0.0], found
