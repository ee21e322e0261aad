"""Sums of features and columns against a few lines of NumPy, and the ridge over sites against the pooled one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from fedgraft.client.data.cohorts.batches import to_float
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.statistics import column_sums, feature_sums
from fedgraft.common.closed_form.closed_form import ridge_head
from helpers.work import CPU, TABLE_PLAN, MakeStudy, cohort, images, local_model_input


def test_feature_sums_are_those_of_numpy(attack_target) -> None:
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 2] * 3 + [0] * 6)
    local_model, loader = attack_target(labels=labels)
    local_model.model.train()  # must not matter
    sums = feature_sums(local_model, loader)
    known = (labels[:21] >= 0).nonzero().flatten()
    with torch.no_grad():
        features = local_model.model.eval().features(to_float(images(27)[0][known], loader._spec)).double().numpy()
    z = np.hstack([features, np.ones((len(known), 1))])
    y = np.eye(3)[labels[known].numpy()]
    np.testing.assert_allclose(sums["cls/gram"], z.T @ z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums["cls/cross"], z.T @ y, rtol=1e-4, atol=1e-4)
    assert sums["cls/gram"][-1, -1] == 18
    assert sums["cls/gram"].dtype == np.float64


def pooled_ridge(x: np.ndarray, y: np.ndarray, ridge_penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge on standardised features, written for pooled data and solved as least squares."""
    mean, std = x.mean(0), x.std(0)
    z, count = (x - mean) / std, len(x)
    one_hot = np.eye(3)[y]
    top = np.vstack([z, np.sqrt(count * ridge_penalty) * np.eye(x.shape[1])])
    right = np.vstack([one_hot - one_hot.mean(0), np.zeros((x.shape[1], 3))])
    weight = np.linalg.lstsq(top, right, rcond=None)[0] / std[:, None]
    return weight.T, one_hot.mean(0) - mean @ weight


def test_a_ridge_over_three_sites_is_the_pooled_one(make_study: MakeStudy) -> None:
    columns = ("a", "b", "c", "d")
    study = make_study(model={"backbone": "table_linear"}, input=local_model_input(*columns), plan=TABLE_PLAN)
    local_model, rng = LocalModel(study, CPU), np.random.default_rng(1)
    x = torch.from_numpy((rng.normal(size=(90, 4)) * [1, 3, 0.2, 5] + [4, -2, 0, 9]).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 3, 90))
    parts = []
    for start, end in pairwise([0, 11, 50, 90]):
        loader = Loader(cohort(x[start:end], {"cls": y[start:end]}), study.input, CPU)
        parts.append(feature_sums(local_model, loader))
    gram, cross = (sum(part[f"cls/{name}"] for part in parts) for name in ("gram", "cross"))
    for ours, theirs in zip(
        ridge_head(gram, cross, 0.1), pooled_ridge(x.double().numpy(), y.numpy(), 0.1), strict=True
    ):
        assert np.abs(ours - theirs).max() < 1e-10


def test_column_sums_leave_out_missing_numbers(make_study: MakeStudy) -> None:
    study = make_study(model={"backbone": "table_mlp"}, input=local_model_input("a", "b", "c"), plan=TABLE_PLAN)
    nan = float("nan")
    x = torch.tensor([[1.0, nan, nan], [2.0, 5.0, nan], [nan, 7.0, nan], [100.0, 100.0, 100.0]])
    sums = column_sums(study, Loader(cohort(x, {"cls": torch.tensor([0, -1, 1, 2])}, held_out=1), study.input, CPU))
    assert {key: value.tolist() for key, value in sums.items()} == {
        "count": [2, 2, 0],
        "sum": [3, 12, 0],
        "squares": [5, 74, 0],
    }
