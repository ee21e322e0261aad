"""Conformal sets: threshold and counts against a naive twin, and coverage over many draws of validation cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedgraft.client.privacy.release.metric_release import suppressed
from fedgraft.common.metrics.conformal import ConformalThreshold, covered, least_cases, thresholds
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.score_histogram import ScoreHistogram
from fedgraft.common.metrics.sums.task_metrics import sums_of
from fedgraft.common.study.tasks import AnyTask, Multilabel, Task

TWO, THREE = Task(classes=("a", "b")), Task(classes=("a", "b", "c"))
LABELS = Multilabel(name="finding", kind="multilabel", labels=("x", "y"))
Pair = tuple[np.ndarray, np.ndarray]


def drawn(task: AnyTask, cases: int, rng: np.random.Generator, sure: float = 3.0) -> Pair:
    """Answers that are far too sure of themselves, and the truth."""
    if isinstance(task, Multilabel):
        truth = (rng.uniform(size=(cases, 2)) < [0.3, 0.6]).astype(float)
        return sure * (rng.normal(size=(cases, 2)) + 1.5 * truth - 0.7), truth
    classes = len(task.classes)
    truth = rng.choice(classes, cases, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return sure * (rng.normal(size=(cases, classes)) + np.eye(classes)[truth]), truth


def probabilities(task: AnyTask, pair: Pair, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every case the log-odds of each answer, and the number of the true one; by hand."""
    logits, truth = pair
    if isinstance(task, Multilabel):
        return np.stack([-logits[:, part], logits[:, part]], axis=1), truth[:, part].astype(int)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    rest = np.stack([np.delete(odds, at, axis=1).sum(axis=1) for at in range(odds.shape[1])], axis=1)
    return np.log(odds) - np.log(rest), truth


def threshold(task: AnyTask, pair: Pair, coverage: float = 0.9, part: int = 0) -> ConformalThreshold | None:
    return thresholds(task, sums_of(task, *pair), coverage)[part]


@pytest.mark.parametrize("task", [TWO, THREE, LABELS])
@pytest.mark.parametrize("cases", [9, 47, 300])
def test_a_naive_twin_finds_the_same_threshold_and_counts(task: AnyTask, cases: int) -> None:
    rng = np.random.default_rng(cases)
    chosen_on, test = drawn(task, cases, rng), drawn(task, 400, rng)
    for part in range(2 if isinstance(task, Multilabel) else 1):
        odds, truth = probabilities(task, chosen_on, part)
        own = sorted(odds[np.arange(cases), truth])
        naive = own[int(np.floor((cases + 1) * 0.1 + 1e-9)) - 1]
        found = threshold(task, chosen_on, part=part)
        assert found is not None
        assert naive - 0.011 * max(1.0, abs(naive) / 10) <= found.log_odds <= naive
        odds, truth = probabilities(task, test, part)
        sets = odds >= found.log_odds
        told = covered(sums_of(task, *test), part, found)
        assert told is not None
        assert told["n"] == 400
        assert told["coverage"] == pytest.approx(sets[np.arange(400), truth].mean(), abs=1e-9)
        assert told["size"] == pytest.approx(sets.sum(axis=1).mean(), abs=1e-9)
        if task is not THREE:
            by_size = [(sets.sum(axis=1) == count).mean() for count in range(3)]
            assert [told[name] for name in ("none", "one", "both")] == pytest.approx(by_size)
        low, high = told["interval"]
        assert low <= told["coverage"] <= high


@pytest.mark.parametrize(("task", "cases", "coverage"), [(TWO, 19, 0.9), (THREE, 40, 0.8), (LABELS, 60, 0.95)])
def test_over_many_draws_the_true_answer_is_in_the_set_as_often_as_wanted(
    task: AnyTask, cases: int, coverage: float
) -> None:
    """However wrong the model's probabilities are: on average no less, and more by one case in n + 1 at most. The
    interval that is told holds the coverage of a draw in 95 of 100."""
    rng = np.random.default_rng(cases)
    odds, truth = probabilities(task, drawn(task, 20_000, rng), 0)
    own = np.sort(odds[np.arange(len(odds)), truth])
    reached, held = [], 0
    for _ in range(400):
        found = threshold(task, drawn(task, cases, rng), coverage)
        assert found is not None
        share = 1 - np.searchsorted(own, found.log_odds) / len(own)
        reached.append(share)
        held += found.low - 0.005 <= share <= found.high + 0.005
    error = 3 * np.std(reached) / 20
    assert coverage - error <= np.mean(reached) <= coverage + 1 / (cases + 1) + 0.003 + error
    assert held >= 0.92 * 400


def test_too_few_validation_cases_give_no_threshold() -> None:
    """With eight cases nothing short of all classes covers nine of ten; with nine it is the lowest of them."""
    rng = np.random.default_rng(0)
    assert [least_cases(share) for share in (0.8, 0.9, 0.95)] == [4, 9, 19]
    for cases in (0, 1, 8):
        assert threshold(TWO, drawn(TWO, cases, rng)) is None
    pair = drawn(TWO, 9, rng)
    found = threshold(TWO, pair)
    odds, truth = probabilities(TWO, pair, 0)
    assert found is not None
    assert found.log_odds <= odds[np.arange(9), truth].min()
    assert (found.cases, round(found.low, 2)) == (9, 0.66)


def test_it_is_no_patients_own_score() -> None:
    rng = np.random.default_rng(1)
    for sure in (0.1, 3.0, 100.0):
        found = threshold(TWO, drawn(TWO, 99, rng, sure))
        assert found is not None
        assert found.log_odds * 100 == pytest.approx(round(found.log_odds * 100), abs=1e-6)


def test_of_masked_sums_sets_are_larger_and_of_coarse_ones_there_are_none() -> None:
    rng = np.random.default_rng(2)
    for sure in (0.2, 3.0, 40.0):
        sums = ClassificationSums.of(*drawn(THREE, 200, rng, sure))
        blurred = replace(sums, scores=ScoreHistogram.from_grid(sums.scores.grid()))
        (exact,), (masked,) = thresholds(THREE, sums, 0.9), thresholds(THREE, blurred, 0.9, pooled=True)
        assert exact is not None
        assert masked is not None
        assert exact.log_odds - 0.02 * (1 + abs(exact.log_odds)) <= masked.log_odds <= exact.log_odds
    coarse = suppressed(sums)
    assert thresholds(THREE, coarse, 0.9) == [None]
    assert covered(coarse, 0, exact) is None
