"""However cases are spread over sites, and in whatever order sums are added, the result is that of all cases."""

from __future__ import annotations

import json
from functools import reduce
from operator import add

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from fedgraft.common.metrics.sums.class_metrics import ClassificationSums

Predictions = tuple[np.ndarray, np.ndarray]


@st.composite
def predictions(draw: st.DrawFn, classes: tuple[int, int] = (2, 5)) -> Predictions:
    count = draw(st.integers(*classes))
    cases = draw(st.integers(0, 30))
    # Few levels make ties; large ones saturate; tiny ones fall into neighbouring bins.
    logit = st.sampled_from([-0.0, 0.0, 1.0, -2.5, 40.0, -1e4]) | st.floats(-8, 8, width=32)
    logits = draw(st.lists(st.lists(logit, min_size=count, max_size=count), min_size=cases, max_size=cases))
    targets = draw(st.lists(st.integers(-1, count - 1), min_size=cases, max_size=cases))
    return np.array(logits, np.float32).reshape(cases, count), np.array(targets, np.int64)


def assert_same(one: ClassificationSums, two: ClassificationSums) -> None:
    left, right = one.arrays(), two.arrays()
    for key, value in left.items():
        if value.dtype == np.float64:
            np.testing.assert_allclose(value, right[key], rtol=1e-12, atol=1e-12)
        else:
            np.testing.assert_array_equal(value, right[key])


@settings(max_examples=150, deadline=None)
@given(predictions(), st.data())
def test_any_partition_merges_to_the_whole(drawn: Predictions, data: st.DataObject) -> None:
    logits, targets = drawn
    sites = data.draw(st.lists(st.integers(0, 3), min_size=len(targets), max_size=len(targets)))
    order = data.draw(st.permutations(range(4)))
    parts = [ClassificationSums.of(logits[np.equal(sites, s)], targets[np.equal(sites, s)]) for s in order]
    whole = ClassificationSums.of(logits, targets)
    assert_same(reduce(add, parts), whole)
    assert_same(whole + ClassificationSums.zero(logits.shape[1]), whole)


@settings(max_examples=100, deadline=None)
@given(predictions())
def test_sums_survive_the_wire_and_json(drawn: Predictions) -> None:
    logits, targets = drawn
    sums = ClassificationSums.of(logits, targets)
    arrays = sums.arrays()
    assert {array.dtype.name for array in arrays.values()} <= {"uint8", "uint32", "int64", "float64"}
    assert_same(ClassificationSums.from_arrays(arrays, logits.shape[1]), sums)
    text = json.dumps({key: array.tolist() for key, array in arrays.items()}, allow_nan=False)
    assert_same(ClassificationSums.from_arrays(json.loads(text), logits.shape[1]), sums)


@settings(max_examples=100, deadline=None)
@given(predictions((2, 2)))
def test_ranking_metrics_equal_sklearn_on_log_odds(drawn: Predictions) -> None:
    logits, targets = drawn[0].astype(np.float64), drawn[1]
    values = ClassificationSums.of(logits, targets).values()
    truth, score = targets[targets >= 0], (logits[:, 1] - logits[:, 0])[targets >= 0].astype(np.float32)
    if len(set(truth.tolist())) < 2:
        assert values["auroc"] is None
        assert values["average_precision"] is None
        return
    # Scores closer than a bin tie here and not there; half a pair's weight bounds the difference.
    ranked = np.unique(score)
    gaps = np.diff(ranked) > 1e-6 * np.maximum(1e-6, np.abs(ranked[1:]))
    if gaps.all():
        assert np.isclose(values["auroc"], roc_auc_score(truth, score), atol=1e-12)
        assert np.isclose(values["average_precision"], average_precision_score(truth, score), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(predictions(), st.integers(1, 100))
def test_coarse_sums_merge_and_change_no_counts(drawn: Predictions, bins: int) -> None:
    logits, targets = drawn
    half = len(targets) // 2
    whole = ClassificationSums.of(logits, targets).coarsen(bins)
    parts = [ClassificationSums.of(logits[s], targets[s]).coarsen(bins) for s in (slice(0, half), slice(half, None))]
    assert_same(parts[0] + parts[1], whole)
    assert_same(ClassificationSums.from_arrays(whole.arrays(), logits.shape[1]), whole)
