"""What goes into a masked sum comes out as the update of one site that has all cases."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.table import OF_CLASSES
from fedgraft.common.protocol.instructions import TRUNK, Update
from fedgraft.common.protocol.packed_symmetric import packed
from fedgraft.common.secure_aggregation.summing import (
    mean_loss,
    metric_shapes,
    metric_summands,
    pooled_loss,
    pooled_metrics,
    pooled_update,
    tensor_shapes,
    tensor_summands,
)
from fedgraft.common.study.plan import Role, Stage, Tag
from fedgraft.common.study.stages.aggregates import Mean, Ridge, ServerOptimiser
from fedgraft.server.aggregation.aggregator import aggregator_for

TAGS = {"b.w": Tag(Role.BODY, 1), "b.n": Tag(Role.NORM_STATS, 1), "heads.cls.w": Tag(Role.HEAD, 2, "cls")}
STATE = {"b.w": np.zeros(4, np.float32), "b.n": np.array(7), "heads.cls.w": np.full(2, 5.0, np.float32)}
SHAPES = {key: (array.shape, array.dtype.name) for key, array in STATE.items()}


def update(seed: int, cases: float, labelled: float) -> Update:
    rng = np.random.default_rng(seed)
    tensors = {
        "b.w": rng.normal(size=4).astype(np.float32),
        "b.n": np.array(10 * seed),
        "heads.cls.w": rng.normal(size=2).astype(np.float32),
    }
    train = {"loss": float(seed), "examples": cases, "steps": 3.0}
    return Update(1, tensors, {TRUNK: cases, "cls": labelled}, train, {})


def summed(terms: list) -> dict[str, np.ndarray]:
    """What a masked sum opens to."""
    return {
        key: np.sum([t.arrays[key].astype(np.float64) * t.factors.get(key, 1.0) for t in terms], axis=0)
        for key in terms[0].arrays
    }


@pytest.mark.parametrize("weight", ["examples", "equal"])
@pytest.mark.parametrize("labelled", [(5.0, 0.0, 9.0), (0.0, 0.0, 0.0)])
def test_a_merger_makes_the_same_of_the_sum_as_of_all_updates(make_study, weight: str, labelled: tuple) -> None:
    study = make_study()
    stage = study.plan[0].model_copy(update={"aggregate": Mean(weight=weight)})
    updates = [update(seed, cases, known) for seed, cases, known in zip((1, 2, 3), (12, 30, 9), labelled, strict=True)]
    terms = [tensor_summands(one, stage, TAGS) for one in updates]
    assert {k: (a.shape, a.dtype.name) for k, a in terms[0].arrays.items()} == tensor_shapes(SHAPES, study, stage)
    whole = pooled_update(summed(terms), stage, TAGS, STATE)
    one, many = aggregator_for(stage, TAGS), aggregator_for(stage, TAGS)
    one.add(whole)
    for each in updates:
        many.add(each)
    ours, theirs = one.result(STATE), many.result(STATE)
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() and ours[key].dtype == STATE[key].dtype for key in theirs)
    assert {key: array.shape for key, array in whole.tensors.items()} == {k: a.shape for k, a in STATE.items()}
    assert not whole.train


def test_a_server_optimiser_takes_the_same_step(make_study) -> None:
    rule = ServerOptimiser(rule="adam", lr=0.1, momentum=0.9)
    stage = make_study().plan[0].model_copy(update={"aggregate": rule})
    updates = [update(seed, 10.0 * seed, 5.0) for seed in (1, 2, 3)]
    whole = pooled_update(summed([tensor_summands(one, stage, TAGS) for one in updates]), stage, TAGS, STATE)
    one, many = aggregator_for(stage, TAGS), aggregator_for(stage, TAGS)
    one.add(whole)
    for each in updates:
        many.add(each)
    ours, theirs = one.result(STATE), many.result(STATE)
    assert all(np.abs(ours[key] - theirs[key]).max() < 1e-6 for key in theirs)
    assert np.abs(ours["b.w"] - STATE["b.w"]).max() > 0.01


def test_sums_of_features_stay_sums(make_study) -> None:
    stage = Stage(name="probe", local={"kind": "statistics"}, aggregate=Ridge())
    sums = packed({"cls/gram": np.eye(3), "cls/cross": np.ones((3, 2))})
    terms = tensor_summands(Update(1, sums, {}, {"examples": 4}, {}), stage, TAGS)
    assert terms.arrays.keys() == sums.keys()
    assert not terms.factors
    assert pooled_update(summed([terms, terms]), stage, TAGS, STATE).tensors["cls/triangle"][0] == 2


def predictions(seed: int, cases: int, classes: int) -> ClassificationSums:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, cases)
    return ClassificationSums.of(rng.normal(size=(cases, classes)) + np.eye(classes)[truth], truth)


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_of_the_sum_are_those_of_all_cases(make_study, classes: int) -> None:
    study = make_study(tasks=[{"name": "cls", "classes": [f"c{n}" for n in range(classes)]}])
    sites = [predictions(seed, 400, classes) for seed in range(4)]
    terms = [metric_summands({"cls": own}, {}) for own in sites]
    assert {k: (a.shape, a.dtype.name) for k, a in terms[0].arrays.items()} == metric_shapes(study)
    found = pooled_metrics(summed(terms), study)["cls"]
    exact = (sites[0] + sites[1] + sites[2] + sites[3]).values()
    for key, value in found.sums.values().items():
        assert value == pytest.approx(exact[key], abs=1e-3 if key in ("auroc", "average_precision") else 1e-9)
    for key in OF_CLASSES:
        assert found.macro[key] == pytest.approx(np.mean([own.values()[key] for own in sites]))


def test_the_loss_of_training_is_the_mean_over_all_cases() -> None:
    nothing = ClassificationSums.zero(3)
    figures = [{"loss": 1.0, "examples": 10.0}, {"loss": 4.0, "examples": 20.0, "steps": 3.0}, {"examples": 7.0}, {}]
    terms = [metric_summands({"cls": nothing}, one) for one in figures]
    assert pooled_loss(summed(terms)) == {"loss": 3.0, "examples": 30.0}
    assert mean_loss(pooled_loss(summed(terms[:1])), pooled_loss(summed(terms[1:]))) == pooled_loss(summed(terms))
    assert mean_loss({}, pooled_loss(summed(terms))) == pooled_loss(summed(terms))
    assert pooled_loss(summed([metric_summands({"cls": nothing}, {})])) == {}


def test_a_mean_over_two_sites_is_not_told(make_study) -> None:
    study = make_study()
    nothing = ClassificationSums.zero(3)
    own = [predictions(1, 50, 3), predictions(2, 50, 3), nothing, nothing]
    found = pooled_metrics(summed([metric_summands({"cls": one}, {}) for one in own]), study)["cls"]
    assert found.macro == dict.fromkeys(OF_CLASSES)
    assert found.sums.n == 100


def test_shapes_do_not_follow_the_data() -> None:
    few, many = (metric_summands({"cls": predictions(1, cases, 3)}, {}).arrays for cases in (3, 5000))
    assert {k: (a.shape, a.dtype) for k, a in few.items()} == {k: (a.shape, a.dtype) for k, a in many.items()}


@pytest.mark.parametrize("key", ["confusion", "scores", "calibration_cases"])
def test_sums_that_no_predictions_could_give_are_refused(make_study, key: str) -> None:
    sums = summed([metric_summands({"cls": predictions(1, 50, 3)}, {})])
    for change in (-200.0, 1.0):
        bent = {**sums, f"cls/{key}": sums[f"cls/{key}"].copy()}
        bent[f"cls/{key}"].reshape(-1)[0] += change
        with pytest.raises(InputError):
            pooled_metrics(bent, make_study())


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_a_weight_that_is_none_does_not_go_in(make_study, weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        tensor_summands(update(1, weight, 1.0), make_study().plan[0], TAGS)
