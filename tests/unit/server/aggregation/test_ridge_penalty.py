"""Heads for values and labels from sums, and the ridge's strength chosen from them, against refits on the raw cases."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.statistics import feature_sums
from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.closed_form import heads_from_sums
from fedgraft.common.closed_form.shapes import expected
from fedgraft.common.models.model import state_arrays
from fedgraft.common.protocol.instructions import Update
from fedgraft.common.protocol.packed_symmetric import packed
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.aggregates import Ridge
from fedgraft.server.aggregation.aggregator import HeadAggregator
from fedgraft.server.aggregation.ridge_penalty import RIDGE_PENALTIES, choose, left_out_errors
from helpers.work import CPU, TABLE_PLAN, MakeStudy, cohort, local_model_input

COLUMNS = ("a", "b", "c", "d")
CUTS = [0, 11, 50, 90]
TASKS = [
    {"name": "size", "kind": "regression", "unit": "mm", "mean": 26, "std": 16},
    {"name": "signs", "kind": "multilabel", "labels": ["mass", "nodule", "scar"]},
    {"name": "cls", "classes": ["x", "y", "z"]},
]


@pytest.fixture
def made(make_study: MakeStudy) -> tuple[Any, LocalModel, torch.Tensor, dict[str, torch.Tensor]]:
    """Ninety cases of three sites with labels missing here and there; the first site has none of the last label."""
    study = make_study(
        model={"backbone": "table_linear"}, tasks=TASKS, input=local_model_input(*COLUMNS), plan=TABLE_PLAN
    )
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(90, 4)) * [1, 3, 0.2, 5] + [4, -2, 0, 9]).astype(np.float32)
    size = 26 + 8 * x[:, 0] - 2 * x[:, 3] + rng.normal(0, 6, 90)
    signs = (x[:, :3] + rng.normal(0, 2, (90, 3)) > x[:, :3].mean(0)).astype(np.float32)
    signs[rng.random((90, 3)) < 0.3] = np.nan
    signs[:11, 2] = np.nan
    size[rng.random(90) < 0.2] = np.nan
    targets = {"size": torch.tensor(size, dtype=torch.float32), "signs": torch.tensor(signs)}
    targets["cls"] = torch.from_numpy(rng.integers(-1, 3, 90))
    return study, LocalModel(study, CPU), torch.from_numpy(x), targets


def sums_by_site(made: Any) -> list[dict[str, np.ndarray]]:
    study, local_model, x, targets = made
    found = []
    for start, end in pairwise(CUTS):
        own = {task: target[start:end] for task, target in targets.items()}
        found.append(feature_sums(local_model, Loader(cohort(x[start:end], own), study.input, CPU)))
    return found


def refit(x: np.ndarray, y: np.ndarray, ridge_penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge on standardised features, solved as least squares on the pooled cases; y (N, outputs)."""
    mean, std, dim = x.mean(0), x.std(0), x.shape[1]
    top = np.vstack([(x - mean) / std, np.sqrt(len(x) * ridge_penalty) * np.eye(dim)])
    weight = np.linalg.lstsq(top, np.vstack([y - y.mean(0), np.zeros((dim, y.shape[1]))]), rcond=None)[0] / std[:, None]
    return weight.T, y.mean(0) - mean @ weight


def coded(name: str, target: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The problems of a task: which cases are known, and their labels as numbers (known, outputs)."""
    if name == "size":
        return [(~np.isnan(target), ((target[~np.isnan(target)].astype(float) - 26) / 16)[:, None])]
    if name == "cls":
        return [(target >= 0, np.eye(3)[target[target >= 0]])]
    return [(k := ~np.isnan(target[:, at]), 2.0 * target[k, at : at + 1].astype(float) - 1) for at in range(3)]


def test_heads_over_sites_are_those_of_the_pooled_cases(made: Any) -> None:
    study, local_model, x, targets = made
    parts = sums_by_site(made)
    total = {key: sum(part[key] for part in parts) for key in parts[0]}
    state = {key: array.astype(np.float64) for key, array in state_arrays(local_model.model).items()}
    heads = heads_from_sums(total, Ridge(ridge_penalty=0.05, scale=4.0), state)
    for name, target in targets.items():
        problems = coded(name, target.numpy())
        pairs = [refit(x.double().numpy()[known], y, 0.05) for known, y in problems]
        scale = 1.0 if name == "size" else 4.0
        assert np.abs(heads[f"heads.{name}.weight"] - scale * np.vstack([w for w, _ in pairs])).max() < 1e-10
        assert np.abs(heads[f"heads.{name}.bias"] - scale * np.concatenate([b for _, b in pairs])).max() < 1e-10
    assert {key: array.shape for key, array in packed(total).items()} == {
        key: shape
        for key, (shape, _) in expected(study, STAGE, local_model.tags, state_arrays(local_model.model)).items()
    }


STAGE = Stage.model_validate(
    {
        "name": "probe",
        "local": {"kind": "statistics"},
        "share": "heads",
        "aggregate": {"kind": "ridge", "ridge_penalty": "loso"},
    }
)


@pytest.mark.parametrize("name", ["size", "signs", "cls"])
def test_errors_on_sites_left_out_are_those_of_refits_without_them(made: Any, name: str) -> None:
    _, _, x, targets = made
    raw, site = x.double().numpy(), np.repeat(range(3), np.diff(CUTS))
    errors = left_out_errors(sums_by_site(made), name)
    naive, constant = dict.fromkeys(RIDGE_PENALTIES, 0.0), 0.0
    for known, y in coded(name, targets[name].numpy()):
        owner = site[known]
        for out in sorted(set(owner)):
            constant += float((y[owner == out] ** 2).sum())
            for ridge_penalty in RIDGE_PENALTIES:
                weight, bias = refit(raw[known][owner != out], y[owner != out], ridge_penalty)
                naive[ridge_penalty] += float(
                    ((y[owner == out] - raw[known][owner == out] @ weight.T - bias) ** 2).sum()
                )
    for ridge_penalty in RIDGE_PENALTIES:
        assert errors[ridge_penalty] + constant == pytest.approx(naive[ridge_penalty], rel=1e-9, abs=1e-9)
    best = min(naive, key=lambda ridge_penalty: naive[ridge_penalty])
    assert choose(sums_by_site(made))[name] == best
    assert len({round(error, 6) for error in naive.values()}) > 8


def test_the_coordinator_solves_with_the_strength_it_chose(made: Any) -> None:
    local_model, parts = made[1], sums_by_site(made)
    aggregator, state = HeadAggregator(Ridge(ridge_penalty="loso")), state_arrays(local_model.model)
    for part in parts:
        aggregator.add(Update(1, packed(part), {}, {}, {}))
    heads = aggregator.result(state)
    total = {key: sum(part[key] for part in parts) for key in parts[0]}
    for name, ridge_penalty in choose(parts).items():
        want = heads_from_sums(total, Ridge(ridge_penalty=ridge_penalty), state)
        assert np.array_equal(heads[f"heads.{name}.weight"], want[f"heads.{name}.weight"])
        assert aggregator.ridge_penalties[name] == ridge_penalty


def test_one_site_alone_cannot_be_left_out(made: Any) -> None:
    with pytest.raises(RunError, match="fewer than two have labels"):
        choose(sums_by_site(made)[:1])
