"""What a figure rests on, and how far it may be off: held against the formulas as the papers have them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from fedgraft.client.privacy.release.metric_release import suppressed
from fedgraft.common.metrics.intervals import (
    Z,
    auroc_interval,
    delong,
    deviation,
    mean_interval,
    mean_of_proportions,
    newcombe,
    wilson,
)
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.mask_metrics import MaskSums
from fedgraft.common.metrics.sums.value_metrics import ValueSums
from fedgraft.common.metrics.support import equal_mean, intervals, precise_mean, support


def two_classes(positives: int, negatives: int, skill: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, some of them tied, and targets."""
    rng = np.random.default_rng(seed)
    truth = np.repeat([1, 0], [positives, negatives])
    score = (rng.normal(size=len(truth)) + skill * truth).round(1)
    return np.stack([np.zeros(len(truth)), score], axis=1).astype(np.float32), truth


def twin_of_delong(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """AUROC and variance from all pairs of a positive and a negative, as DeLong et al. (1988) write it."""
    pairs = scores[truth == 1][:, None] - scores[truth == 0][None]
    wins = (pairs > 0) + 0.5 * (pairs == 0)
    return wins.mean(), wins.mean(axis=1).var(ddof=1) / wins.shape[0] + wins.mean(axis=0).var(ddof=1) / wins.shape[1]


@pytest.mark.parametrize(("positives", "negatives"), [(2, 2), (12, 40), (300, 15)])
def test_the_interval_of_an_auroc_is_delong_s(positives: int, negatives: int) -> None:
    logits, truth = two_classes(positives, negatives, skill=0.5)
    value, variance = twin_of_delong(logits[:, 1], truth)
    sums = ClassificationSums.of(logits, truth)
    assert sums.values()["auroc"] == pytest.approx(value)
    assert delong(*sums.scores.ranked(0)) == pytest.approx(variance)
    wanted = max(0.0, value - Z * math.sqrt(variance)), min(1.0, value + Z * math.sqrt(variance))
    assert intervals(sums)["auroc"] == pytest.approx(wanted)


def test_cases_in_perfect_order_are_not_certain() -> None:
    """DeLong's variance is 0 there; the interval ends where Hanley and McNeil's makes the value just not unlikely."""
    sums = ClassificationSums.of(*two_classes(11, 11, skill=50))
    assert sums.values()["auroc"] == 1.0
    assert delong(*sums.scores.ranked(0)) == 0
    low, high = intervals(sums)["auroc"]
    assert high == 1.0
    assert 0.7 < low < 0.95
    q1, q2, more = low / (2 - low), 2 * low**2 / (1 + low), 10.0  # (m + n) / 2 - 1 in place of m - 1 and of n - 1
    variance = (low * (1 - low) + more * (q1 - low**2) + more * (q2 - low**2)) / 121
    assert 1 - low == pytest.approx(Z * math.sqrt(variance), abs=1e-6)
    assert newcombe(0.0, 11, 11) == pytest.approx((0.0, 1 - low))
    one = ClassificationSums.of(*two_classes(1, 20, skill=50))
    assert deviation(intervals(one)["auroc"]) > 2 * deviation((low, high))


def test_intervals_of_aurocs_hold_as_often_as_they_say() -> None:
    held = 0
    for seed in range(300):
        rows = ClassificationSums.of(*two_classes(30, 60, skill=1.0, seed=seed)).scores.ranked(0)
        low, high = auroc_interval([rows])
        held += low <= 0.7602 <= high  # of two normal distributions one deviation apart
    assert 0.91 < held / 300 < 0.985


@pytest.mark.parametrize(("part", "whole"), [(0, 1), (1, 1), (3, 10), (57, 60), (0, 200), (0, 9), (27, 27)])
def test_proportions_have_wilson_s_interval(part: int, whole: int) -> None:
    found = binomtest(part, whole).proportion_ci(method="wilson")
    assert wilson(part, whole) == pytest.approx((found.low, found.high), abs=1e-9)
    low, high = wilson(part, whole)
    assert low <= part / whole <= high


def test_there_is_no_interval_of_nothing() -> None:
    assert wilson(0, 0) is mean_interval(0.0, 0.0, 1) is mean_of_proportions([0], [0], apart=True) is None
    assert auroc_interval([(np.zeros(0), np.zeros(0))]) is None
    assert intervals(ClassificationSums.zero(3)) == intervals(LabelSums.zero(2)) == intervals(MaskSums.zero()) == {}


def test_a_mean_of_proportions_is_surer_where_each_has_cases_of_its_own() -> None:
    parts, wholes = [8, 30], [10, 50]
    reach = np.array(
        [[0.8 - wilson(8, 10)[0], 0.6 - wilson(30, 50)[0]], [wilson(8, 10)[1] - 0.8, wilson(30, 50)[1] - 0.6]]
    )
    apart = 0.7 - np.hypot(*reach[0]) / 2, 0.7 + np.hypot(*reach[1]) / 2
    together = 0.7 - reach[0].mean(), 0.7 + reach[1].mean()
    assert mean_of_proportions(parts, wholes, apart=True) == pytest.approx(apart)
    assert mean_of_proportions(parts, wholes, apart=False) == pytest.approx(together)


def test_every_metric_with_an_interval_lies_in_it() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 90)
    classes = ClassificationSums.of((rng.normal(size=(90, 3)) + np.eye(3)[truth]).astype(np.float32), truth)
    yes = rng.integers(0, 2, (90, 3)).astype(np.float32)
    labels = LabelSums.of((rng.normal(size=(90, 3)) + yes).astype(np.float32), yes)
    values = ValueSums.of(rng.normal(size=60), rng.normal(size=60))
    none, wrong = [0, 0, 0, np.nan, 0.1], [0, 9, 0, np.nan, 0.3]
    masks = MaskSums.of(np.stack([[40, 60, 50, 3.0, 0.2], [0, 0, 30, np.nan, 0.9], none, wrong] * 4))
    for sums, names in (
        (classes, {"accuracy", "balanced_accuracy", "recall", "specificity", "auroc"}),
        (labels, {"accuracy", "balanced_accuracy", "recall", "specificity", "auroc"}),
        (values, {"mae", "bias"}),
        (masks, {"dice", "missed", "alarms"}),
    ):
        found, told = intervals(sums), sums.values()
        assert set(found) == names
        for name, (low, high) in found.items():
            assert low < told[name] < high, name
    error = np.abs(rng.normal(size=60))
    low, high = mean_interval(error.sum(), (error**2).sum(), 60)
    assert (high - low) / (2 * Z) == pytest.approx(error.std(ddof=1) / math.sqrt(60))


def test_noised_and_coarse_counts_have_support_and_no_interval() -> None:
    """Their support is what policy lets out: of a class with fewer than ten cases, none."""
    many, few = (suppressed(ClassificationSums.of(*two_classes(n, 60))) for n in (25, 6))
    assert (support(many).positives, support(many).negatives) == ((25,), (60,))
    assert (support(few).positives, support(few).effective) == ((0,), 0.0)
    assert intervals(many) == intervals(few) == {}


def test_support_of_two_classes_is_the_smaller_one() -> None:
    found = support(ClassificationSums.of(*two_classes(7, 50)))
    assert (found.n, found.positives, found.negatives, found.effective) == (57, (7,), (50,), pytest.approx(7))
    assert not found.plain(10)["enough"]
    assert found.plain(7)["enough"]
    one_sided = support(ClassificationSums.of(*two_classes(0, 50)))
    assert one_sided.effective == 0


def of_counts(*counts: int) -> ClassificationSums:
    truth = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(0)
    return ClassificationSums.of(rng.normal(size=(len(truth), len(counts))).astype(np.float32), truth)


def test_a_rare_class_of_several_makes_a_mean_unsure_and_a_few_of_each_need_not() -> None:
    assert support(of_counts(50, 50, 1)).effective < 10, "a third of this mean is one case"
    assert support(of_counts(5, 5, 4, 4)).effective > 10
    assert support(of_counts(12, 6, 0)).effective == pytest.approx(6), "two of three classes are two classes"
    assert support(of_counts(40, 40, 40)).effective == pytest.approx(3 * 2 / (3 / 40))


def test_support_of_the_other_kinds() -> None:
    yes = np.array([[1, 1], [0, 1], [0, 0], [np.nan, 0]], np.float32)
    labels = support(LabelSums.of(np.zeros((4, 2), np.float32), yes))
    assert (labels.positives, labels.negatives) == ((1, 2), (2, 2))
    assert labels.effective == pytest.approx(2 / (1 / 1 + 1 / 2))
    assert support(ValueSums.of(np.zeros(4), np.zeros(4))).effective == 4
    masks = support(MaskSums.of(np.array([[1, 1, 1, 0.0, 0.1], [0, 0, 0, np.nan, 0.1]])))
    assert (masks.positives, masks.negatives, masks.effective) == ((1,), (1,), 1)


def test_means_over_sites_by_hand() -> None:
    values, found = {"a": 0.8, "b": 0.6}, {"a": (0.7, 0.9), "b": (0.4, 0.8)}
    errors = {site: deviation(one) for site, one in found.items()}
    assert errors == pytest.approx({"a": 0.1 / Z, "b": 0.2 / Z})
    reach = math.hypot(0.1, 0.2) / 2
    assert equal_mean(values, found) == pytest.approx(
        {"value": 0.7, "low": 0.7 - reach, "high": 0.7 + reach, "sites": 2}
    )
    weights = {site: 1 / error**2 for site, error in errors.items()}
    mean = sum(weights[site] * values[site] for site in values) / sum(weights.values())
    spread = Z / math.sqrt(sum(weights.values()))
    wanted = {"value": mean, "low": mean - spread, "high": mean + spread, "sites": 2}
    assert precise_mean(values, found) == pytest.approx(wanted)
    assert mean == pytest.approx(0.76)
    assert precise_mean(values, {"a": (0.7, 0.9)}) is None
    assert equal_mean(values, {})["low"] is None
