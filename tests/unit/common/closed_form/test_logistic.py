"""Exact steps towards logistic heads: what a site sends, and where they end, against PyTorch and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from fedgraft.client.training.curvature import curvature_sums
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.logistic import logistic_heads
from fedgraft.common.closed_form.shapes import expected
from fedgraft.common.models.model import state_arrays
from fedgraft.common.protocol.instructions import Update
from fedgraft.common.protocol.packed_symmetric import packed
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.aggregates import Logistic
from fedgraft.common.study.study import parse_study
from fedgraft.server.aggregation.aggregator import aggregator_for
from helpers.work import CPU, cohort, images

Sums = dict[str, np.ndarray]
TASKS = [
    {"name": "cls", "classes": ["a", "b", "c"]},
    {"name": "found", "kind": "multilabel", "labels": ["x", "y"]},
    {"name": "size", "kind": "regression", "unit": "mm", "mean": 20, "std": 10},
]
STAGE = {"name": "x", "local": {"kind": "statistics", "of": "curvature"}, "share": "heads"}


def drawn(seed: int, count: int, classes: int, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4))
    return x, (apart * np.pad(x, ((0, 0), (0, 1)))[:, :classes] + rng.gumbel(size=(count, classes))).argmax(axis=1)


def sums_of(x: np.ndarray, y: np.ndarray, state: Sums) -> Sums:
    """What a site sends, by hand: the curvature as one block per pair of classes."""
    z, classes = np.hstack([x, np.ones((len(x), 1))]), len(state["heads.cls.bias"])
    p = softmax(x @ state["heads.cls.weight"].T + state["heads.cls.bias"], axis=1)
    bends = np.einsum("na,ab->nab", p, np.eye(classes)) - np.einsum("na,nb->nab", p, p)
    gram = np.einsum("nab,ni,nj->aibj", bends, z, z).reshape(classes * 5, classes * 5)
    return {"cls/gram": gram, "cls/cross": z.T @ (np.eye(classes)[y] - p), "cls/cases": np.array([len(x)], float)}


def empty(classes: int) -> Sums:
    return {"heads.cls.weight": np.zeros((classes, 4)), "heads.cls.bias": np.zeros(classes)}


@pytest.mark.parametrize(("classes", "apart"), [(2, 1.0), (4, 1.0), (3, 8.0)])
def test_eight_exchanges_end_at_the_pooled_logistic_regression(classes: int, apart: float) -> None:
    """Each site's sums alone, added up by the coordinator; classes that are far apart do not make it run away."""
    sites = [drawn(seed, 60 + 20 * seed, classes, apart) for seed in range(3)]
    state, stage = empty(classes), Stage.model_validate(STAGE | {"aggregate": Logistic(ridge_penalty=0.02)})
    for _ in range(8):
        aggregator = aggregator_for(stage, {})
        for x, y in sites:
            aggregator.add(Update(1, packed(sums_of(x, y, state)), {}, {}, {}))
        state |= aggregator.result(state)
    x, y = np.vstack([site[0] for site in sites]), np.concatenate([site[1] for site in sites])
    pooled = LogisticRegression(C=1 / (0.02 * len(x)), tol=1e-12, max_iter=10_000)
    if classes == 2:  # scikit-learn gives two classes one column, whose penalty is that of both of ours together
        pooled.C *= 2
    said = softmax(x @ state["heads.cls.weight"].T + state["heads.cls.bias"], axis=1)
    np.testing.assert_allclose(said, pooled.fit(x, y).predict_proba(x), atol=1e-6)


def test_the_penalty_is_features_per_case_unless_a_number_is_given() -> None:
    x, y = drawn(1, 80, 2)
    state = empty(2)
    sums = sums_of(x, y, state)
    by_rule, by_number = (logistic_heads(sums, Logistic(ridge_penalty=p), state) for p in ("auto", 4 / 80))
    assert all(np.array_equal(by_rule[key], by_number[key]) for key in state)
    freer = logistic_heads(sums, Logistic(ridge_penalty=1e-6), state)
    assert np.abs(freer["heads.cls.weight"]).sum() > np.abs(by_rule["heads.cls.weight"]).sum()


def test_a_task_without_a_label_is_refused_by_name() -> None:
    state = empty(2)
    sums = {key: 0 * array for key, array in sums_of(*drawn(1, 20, 2), state).items()}
    with pytest.raises(RunError, match="No site has a label for task 'cls'"):
        logistic_heads(sums, Logistic(), state)


def test_what_a_site_sends_is_slope_and_curvature_of_its_loss() -> None:
    """Against PyTorch's own derivatives, for classes, labels and values, cases without a label left out."""
    study = parse_study(
        {
            "name": "x",
            "tasks": TASKS,
            "input": {"kind": "image", "size": 32},
            "model": {"backbone": "slim_resnet", "weights": None},
            "plan": [STAGE | {"aggregate": {"kind": "logistic"}}],
        },
        "here",
    )
    local_model = LocalModel(study, CPU)
    inputs, cls = images(18)
    rng = np.random.default_rng(3)
    found, size = rng.integers(0, 2, (18, 2)).astype(np.float32), rng.normal(25, 8, 18).astype(np.float32)
    cls[2], found[3, 1], size[4] = -1, np.nan, np.nan
    targets = {"cls": cls, "found": torch.from_numpy(found), "size": torch.from_numpy(size)}
    loader = Loader(cohort(inputs, targets), study.input, CPU)
    sums = curvature_sums(local_model, loader)
    state = state_arrays(local_model.model)
    shapes = expected(study, study.plan[0], local_model.tags, state)
    assert {key: (array.shape, array.dtype.name) for key, array in packed(sums).items()} == dict(shapes)

    (batch,) = loader.batches([torch.arange(18)])
    local_model.model.eval()
    with torch.no_grad():
        z = torch.cat([local_model.model.features(batch.inputs).double(), torch.ones(18, 1)], dim=1)
    heads = {
        task: torch.from_numpy(np.hstack([state[f"heads.{task}.weight"], state[f"heads.{task}.bias"][:, None]]))
        for task in ("cls", "found", "size")
    }

    def against(loss, head, slope: np.ndarray, curvature: np.ndarray) -> None:
        head = head.double()
        gradient = torch.autograd.functional.jacobian(loss, head)
        np.testing.assert_allclose(-gradient.T.numpy(), slope, rtol=1e-4, atol=1e-5)
        hessian = torch.autograd.functional.hessian(loss, head).reshape(curvature.shape)
        np.testing.assert_allclose(hessian.numpy(), curvature, rtol=1e-4, atol=1e-5)

    known = cls >= 0
    against(
        lambda head: F.cross_entropy(z[known] @ head.T, cls[known], reduction="sum"),
        heads["cls"],
        sums["cls/cross"],
        sums["cls/gram"],
    )
    for label in (0, 1):
        known = ~torch.isnan(targets["found"][:, label])
        right = targets["found"][known, label].double()
        against(
            lambda head, known=known, right=right: F.binary_cross_entropy_with_logits(
                (z[known] @ head.T)[:, 0], right, reduction="sum"
            ),
            heads["found"][label : label + 1],
            sums["found/cross"][:, label : label + 1],
            sums["found/gram"][label],
        )
    known = ~torch.isnan(targets["size"])
    right = (targets["size"][known].double() - 20) / 10
    against(
        lambda head: 0.5 * ((right - (z[known] @ head.T)[:, 0]) ** 2).sum(),
        heads["size"],
        sums["size/value"],
        sums["size/gram"],
    )
    assert (sums["cls/cases"], sums["found/cases"].tolist(), sums["size/cases"]) == (17, [18, 17], 17)
