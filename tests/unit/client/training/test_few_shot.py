"""A model fitted to few cases of a new site: which cases, and what the blend with the common sums is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.training.few_shot import (
    Given,
    TooFewShots,
    blended,
    fitted,
    only,
    shots,
)
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.statistics import feature_sums
from fedgraft.common.closed_form.closed_form import automatic_penalties
from fedgraft.common.closed_form.moments import MEAN, moments_from_sums
from fedgraft.common.models.model import state_arrays
from fedgraft.common.study.methods.fit import Fit
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task
from helpers.work import CPU, MakeStudy, cohort, images

TASK = Task(name="cls", classes=("left", "right", "middle"))


@pytest.fixture
def mine() -> Cohort:
    """Sixty cases, of which twelve validate; of the training cases six have no label."""
    inputs, labels = images(60)
    labels[:6] = -1
    return cohort(inputs, {"cls": labels}, held_out=12)


@pytest.fixture
def local_model(make_study: MakeStudy) -> tuple[Study, LocalModel, dict[str, np.ndarray]]:
    study = make_study()
    made = LocalModel(study, CPU)
    return study, made, {key: array.copy() for key, array in state_arrays(made.model).items()}


def test_so_many_of_each_class_and_never_fewer(mine: Cohort) -> None:
    train = set(mine.splits["train"].tolist())
    draws = {size: shots(mine, TASK, size, 1).tolist() for size in (1, 5, 14)}
    for size, drawn in draws.items():
        assert set(drawn) <= train
        assert Counter(mine.targets["cls"][drawn].tolist()) == dict.fromkeys(range(3), size)
    assert set(draws[1]) < set(draws[5]) < set(draws[14])
    assert shots(mine, TASK, 5, 1).tolist() == draws[5]
    assert shots(mine, TASK, 5, 2).tolist() != draws[5]
    with pytest.raises(TooFewShots) as short:
        shots(mine, TASK, 15, 1)
    assert short.value.words() == "14 of left, 14 of right, 14 of middle"
    lacking = replace(mine, targets={"cls": torch.where(mine.targets["cls"] == 1, -1, mine.targets["cls"])})
    with pytest.raises(TooFewShots) as short:
        shots(lacking, TASK, 1, 1)
    assert short.value.words() == "0 of right"


def test_only_the_drawn_cases_are_learnt_from(mine: Cohort, local_model: Any) -> None:
    """Cases that were not drawn may be anything."""
    study, made, state = local_model
    chosen = shots(mine, TASK, 4, 0)
    others = sorted(set(range(len(mine.inputs))) - set(chosen.tolist()))
    spoilt = mine.inputs.clone()
    spoilt[others] = 30000
    for how in ("tune", "ridge", "ncm", "lda"):
        fits = [
            fitted(
                made, only(replace(mine, inputs=inputs), chosen), study, Given(state, None), Fit(how=how, steps=3), 5
            )
            for inputs in (mine.inputs, spoilt)
        ]
        assert fits[0].keys() == fits[1].keys() != set()
        assert all(np.array_equal(fits[0][key], fits[1][key]) for key in fits[0])


def test_one_fit_leaves_nothing_behind_for_the_next(mine: Cohort, local_model: Any) -> None:
    study, made, state = local_model
    own = only(mine, shots(mine, TASK, 4, 0))

    def tuned() -> dict[str, np.ndarray]:
        return fitted(made, own, study, Given(state, None), Fit(steps=3), 5)

    first = tuned()
    assert any(not np.array_equal(first[key], state[key]) for key in first)
    fitted(made, own, study, Given(state, None), Fit(how="lda"), 5)
    assert fitted(made, own, study, Given(state, None), Fit(how="none"), 5) == {}
    assert all(np.array_equal(array, state[key]) for key, array in state_arrays(made.model).items())
    again = tuned()
    assert all(np.array_equal(first[key], again[key]) for key in first)


def test_the_blend_is_as_if_the_common_cases_were_so_many(mine: Cohort, local_model: Any) -> None:
    """A naive twin: the weighted ridge, and prototypes, of both sites' cases in one array."""
    study, made, state = local_model
    inputs, labels = images(90, seed=9)
    theirs = cohort(inputs, {"cls": labels})
    own = only(mine, shots(mine, TASK, 4, 0))
    common = feature_sums(made, Loader(theirs, study.input, CPU))
    rows, codes, weights = [], [], []
    for who, weight in ((own, 1.0), (theirs, 30 / 90)):
        loader = Loader(who, study.input, CPU)
        (batch,) = loader.batches([loader.labelled("train")])
        made.model.eval()
        with torch.no_grad():
            rows.append(made.model.features(batch.inputs).double().numpy())
        codes.append(np.eye(3)[batch.targets["cls"].numpy()])
        weights.append(np.full(len(rows[-1]), weight))
    x, y, w = np.vstack(rows), np.vstack(codes), np.concatenate(weights)
    given, fit = Given(state, common), Fit(how="ncm", common=30)
    heads = fitted(made, own, study, given, fit, 0)
    means = np.stack([np.average(x[y[:, c] == 1], axis=0, weights=w[y[:, c] == 1]) for c in range(3)])
    spread = np.average((x - np.average(x, axis=0, weights=w)) ** 2, axis=0, weights=w).mean()
    np.testing.assert_allclose(heads["heads.cls.weight"], 0.05 * means / spread, rtol=1e-3)
    heads = fitted(made, own, study, given, Fit(how="ridge", common=30), 0)
    mean, middle = np.average(x, axis=0, weights=w), np.average(y, axis=0, weights=w)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
    scale[scale < 1e-6] = np.inf
    z = (x - mean) / scale
    penalty = automatic_penalties(blended(feature_sums(made, Loader(own, study.input, CPU)), common, 30))["cls"]
    left = (z * w[:, None]).T @ z + penalty * w.sum() * np.eye(x.shape[1])
    weight = np.linalg.solve(left, (z * w[:, None]).T @ (y - middle)) / scale[:, None]
    np.testing.assert_allclose(heads["heads.cls.weight"], 5 * weight.T, rtol=1e-3, atol=1e-5)


def test_without_common_sums_heads_are_the_sites_own(mine: Cohort, local_model: Any) -> None:
    study, made, _ = local_model
    own = feature_sums(made, Loader(only(mine, shots(mine, TASK, 4, 0)), study.input, CPU))
    common = feature_sums(made, Loader(mine, study.input, CPU))
    for sums in (blended(own, None, 20), blended(own, common, 0)):
        assert all(np.array_equal(sums[key], own[key]) for key in own)
    assert blended(own, common, 20)["cls/gram"][-1, -1] == pytest.approx(12 + 20)


def test_tasks_of_other_kinds_are_solved_where_that_can_be(make_study: MakeStudy) -> None:
    """Several labels and a value beside classes: ridge solves all that have labels, prototypes the classes alone."""
    tasks = [
        {"name": "cls", "classes": ["left", "right", "middle"]},
        {"name": "size", "kind": "regression", "unit": "mm", "mean": 10, "std": 4},
        {"name": "signs", "kind": "multilabel", "labels": ["mass", "scar"]},
        {"name": "later", "classes": ["yes", "no"]},
    ]
    study = make_study(tasks=tasks)
    made = LocalModel(study, CPU)
    state = {key: array.copy() for key, array in state_arrays(made.model).items()}
    inputs, labels = images(30)
    rng = np.random.default_rng(2)
    targets = {
        "cls": labels,
        "size": torch.from_numpy(rng.normal(10, 4, 30).astype(np.float32)),
        "signs": torch.from_numpy(rng.integers(0, 2, (30, 2)).astype(np.float32)),
        "later": torch.full((30,), -1),
    }
    mine = cohort(inputs, targets)
    common = feature_sums(made, Loader(mine, study.input, CPU))
    assert np.allclose(moments_from_sums(common)[MEAN], common["signs/gram"][0][-1, :-1] / 30)

    def solved(how: str) -> set[str]:
        fit = Fit.model_validate({"how": how})
        return {key.split(".")[1] for key in fitted(made, mine, study, Given(state, common), fit, 0)}

    assert solved("ridge") == {"cls", "size", "signs"}
    assert solved("ncm") == solved("lda") == {"cls"}
