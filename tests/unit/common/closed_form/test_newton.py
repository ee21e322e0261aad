"""Newton's steps from sums: those of the pooled cases, and they end where logistic regression does."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.statistics import feature_sums
from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.closed_form import ridge_head
from fedgraft.common.closed_form.newton import stepped_heads
from fedgraft.common.models.model import state_arrays
from fedgraft.common.protocol.instructions import Update
from fedgraft.common.study.plan import Stage, Statistics
from fedgraft.common.study.stages.aggregates import Newton
from fedgraft.common.study.study import parse_study
from fedgraft.server.aggregation.aggregator import aggregator_for
from helpers.work import CPU, cohort, images

Sums = dict[str, np.ndarray]


def drawn(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cases z with a 1 at the end, and classes that they tell something of."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4))
    y = (x[:, :3] + rng.gumbel(size=(count, 3))).argmax(axis=1)
    return np.hstack([x, np.ones((count, 1))]), y


def sums_of(z: np.ndarray, y: np.ndarray, state: Sums) -> Sums:
    head = np.vstack([state["heads.cls.weight"].T, state["heads.cls.bias"]])
    return {"cls/gram": z.T @ z, "cls/cross": z.T @ (np.eye(3)[y] - softmax(z @ head, axis=1))}


def empty() -> Sums:
    return {"heads.cls.weight": np.zeros((3, 4)), "heads.cls.bias": np.zeros(3)}


def test_a_step_of_all_sites_is_the_pooled_step() -> None:
    sites, state = [drawn(seed, 40 + 9 * seed) for seed in range(3)], empty()
    state["heads.cls.weight"] += np.random.default_rng(9).normal(size=(3, 4))
    stage = Stage(name="x", local=Statistics(of="residuals"), aggregate=Newton(ridge_penalty=0.1))
    aggregator = aggregator_for(stage, {})
    for site in sites:
        aggregator.add(Update(1, sums_of(*site, state), {}, {}, {}))
    found = aggregator.result(state)
    z, y = np.vstack([site[0] for site in sites]), np.concatenate([site[1] for site in sites])
    pooled = sums_of(z, y, state)
    weight, bias = ridge_head(pooled["cls/gram"], pooled["cls/cross"], 0.1, standardise=False)
    np.testing.assert_allclose(found["heads.cls.weight"], state["heads.cls.weight"] + 2 * weight, atol=1e-10)
    np.testing.assert_allclose(found["heads.cls.bias"], state["heads.cls.bias"] + 2 * bias, atol=1e-10)


def test_a_ridge_on_features_as_they_are_is_that_of_the_normal_equations() -> None:
    z, y = drawn(1, 60)
    x, onehot = z[:, :4] - z[:, :4].mean(0), np.eye(3)[y] - np.eye(3)[y].mean(0)
    by_hand = np.linalg.solve(x.T @ x + 60 * 0.3 * np.eye(4), x.T @ onehot)
    weight, bias = ridge_head(z.T @ z, z.T @ np.eye(3)[y], 0.3, standardise=False)
    np.testing.assert_allclose(weight.T, by_hand, atol=1e-10)
    np.testing.assert_allclose(bias, np.eye(3)[y].mean(0) - z[:, :4].mean(0) @ by_hand, atol=1e-10)


def test_steps_end_at_the_logistic_regression_of_scikit_learn() -> None:
    (z, y), state = drawn(5, 400), empty()
    losses = []
    for _ in range(60):
        state |= stepped_heads(sums_of(z, y, state), Newton(ridge_penalty=1e-9), state)
        head = np.vstack([state["heads.cls.weight"].T, state["heads.cls.bias"]])
        losses.append(float(-np.log(softmax(z @ head, axis=1)[np.arange(len(y)), y]).sum()))
    assert all(after <= before + 1e-9 for before, after in pairwise(losses))
    pooled = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(z[:, :4], y)
    mine = softmax(z[:, :4] @ state["heads.cls.weight"].T + state["heads.cls.bias"], axis=1)
    np.testing.assert_allclose(mine, pooled.predict_proba(z[:, :4]), atol=1e-4)


def test_where_nothing_is_wrong_heads_stay() -> None:
    z, _ = drawn(6, 50)
    state = empty()
    sums = {"cls/gram": z.T @ z, "cls/cross": np.zeros((5, 3))}
    found = stepped_heads(sums, Newton(ridge_penalty=0.1), state)
    assert all(np.array_equal(found[key], state[key]) for key in state)


def test_a_step_without_labels_or_strength_is_refused() -> None:
    sums = {"cls/gram": np.zeros((5, 5)), "cls/cross": np.zeros((5, 3))}
    with pytest.raises(RunError, match="No site has a label"):
        stepped_heads(sums, Newton(ridge_penalty=0.1), empty())
    with pytest.raises(RunError, match="not chosen yet"):
        stepped_heads(sums, Newton(), empty())


TASKS = [
    {"name": "cls", "classes": ["a", "b", "c"]},
    {"name": "found", "kind": "multilabel", "labels": ["x", "y"]},
    {"name": "size", "kind": "regression", "unit": "mm", "mean": 20, "std": 10},
]


def test_what_a_site_sends_is_what_its_heads_get_wrong() -> None:
    """For classes, labels and values, of validation cases alone, those without a label left out."""
    plan = [{"name": "x", "local": {"kind": "statistics"}, "share": "heads", "aggregate": {"kind": "ridge"}}]
    study = parse_study({"name": "x", "tasks": TASKS, "input": {"kind": "image", "size": 32}, "plan": plan}, "here")
    local_model = LocalModel(study, CPU)
    inputs, cls = images(20)
    rng = np.random.default_rng(3)
    found, size = rng.integers(0, 2, (20, 2)).astype(np.float32), rng.normal(25, 8, 20).astype(np.float32)
    cls[18], found[17, 1], size[16] = -1, np.nan, np.nan
    targets = {"cls": cls, "found": torch.from_numpy(found), "size": torch.from_numpy(size)}
    loader = Loader(cohort(inputs, targets, held_out=8), study.input, CPU)
    sums = feature_sums(local_model, loader, "val", residuals=True)
    (batch,) = loader.batches([torch.arange(12, 20)])
    local_model.model.eval()
    with torch.no_grad():
        z = np.hstack([local_model.model.features(batch.inputs).double().numpy(), np.ones((8, 1))])
    state = {key: array.astype(np.float64) for key, array in state_arrays(local_model.model).items()}

    def said(task: str) -> np.ndarray:
        return np.asarray(z @ np.vstack([state[f"heads.{task}.weight"].T, state[f"heads.{task}.bias"]]))

    late = slice(12, 20)
    known = cls.numpy()[late] >= 0
    wrong = np.eye(3)[cls.numpy()[late][known]] - softmax(said("cls")[known], axis=1)
    np.testing.assert_allclose(sums["cls/cross"], z[known].T @ wrong, rtol=1e-4, atol=1e-5)
    for label in (0, 1):
        known = ~np.isnan(found[late, label])
        wrong = found[late, label][known] - expit(said("found")[known, label])
        np.testing.assert_allclose(sums["found/cross"][:, label], z[known].T @ wrong, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(sums["found/gram"][label], z[known].T @ z[known], rtol=1e-6)
    known = ~np.isnan(size[late])
    wrong = (size[late][known] - 20) / 10 - said("size")[known, 0]
    np.testing.assert_allclose(sums["size/value"][:, 0], z[known].T @ wrong, rtol=1e-4, atol=1e-5)
    stepped = stepped_heads(sums, Newton(ridge_penalty=1.0), state)
    labels = ridge_head(sums["found/gram"][1], sums["found/cross"][:, 1:], 1.0, standardise=False)[0]
    np.testing.assert_allclose(stepped["heads.found.weight"][1], state["heads.found.weight"][1] + 4 * labels[0])
    value = ridge_head(sums["size/gram"], sums["size/value"], 1.0, standardise=False)[0]
    np.testing.assert_allclose(stepped["heads.size.weight"], state["heads.size.weight"] + value)
