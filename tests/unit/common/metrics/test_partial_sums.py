"""Sums of which policy lets out a part: what they do not say is not known, alone and added to those that say all."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fedgraft.client.privacy.release.metric_release import LEAST, noised_counts, suppressed
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.task_metrics import TaskSums, add, plain, read_sums, sums_of
from fedgraft.common.metrics.support import support
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task

OF_CONFUSION = ("accuracy", "balanced_accuracy", "recall", "specificity", "f1")
CASES = 120


def two_classes(right: int, wrong: int) -> ClassificationSums:
    """So many cases of either class that are right, and that are wrong."""
    truth = np.tile([0, 1], right + wrong)
    said = np.where(np.arange(2 * (right + wrong)) < 2 * right, truth, 1 - truth)
    score = np.where(said == 1, 1.0, -1.0) + np.linspace(-0.5, 0.5, len(truth))
    return ClassificationSums.of(np.stack([np.zeros(len(truth)), score], axis=1), truth)


def test_few_errors_are_not_no_errors() -> None:
    exact = two_classes(30, 5)
    told = suppressed(exact)
    assert exact.values()["accuracy"] == pytest.approx(30 / 35)
    assert [told.values()[key] for key in OF_CONFUSION] == [None] * 5
    assert told.n == support(told).n == exact.n
    assert exact.values()["auroc"] > 0.8
    assert told.values()["auroc"] is None  # in a single bin, where it would be .5
    whole = suppressed(two_classes(30, LEAST))
    assert whole.values()["accuracy"] == pytest.approx(30 / 40)


def test_a_small_cell_does_not_follow_from_the_others_and_the_cases_of_its_class() -> None:
    for wrong in range(1, LEAST):
        told = suppressed(two_classes(30, wrong))
        (negatives, positives), hit = told.scores.totals()[0], np.diag(told.confusion)
        assert (negatives - hit[0], positives - hit[1]) == (30 + wrong, 30 + wrong)


def test_what_one_site_does_not_say_is_not_known_of_all_of_them() -> None:
    hidden, shown = suppressed(two_classes(30, 5)), two_classes(20, 15)
    for both in (hidden + shown, shown + hidden, ClassificationSums.zero(2) + hidden + shown):
        assert both.n == 140
        assert [both.values()[key] for key in (*OF_CONFUSION, "brier", "ece", "loss")] == [None] * 8
        assert both.values()["auroc"] > 0.5


def test_a_mean_over_some_of_the_labels_is_not_called_that_of_all() -> None:
    often, seldom = np.tile([0.0, 1.0], 60), np.repeat([0.0, 1.0], [100, 20])
    logits = np.random.default_rng(0).normal(size=(CASES, 2)) + np.stack([often, 4 * seldom - 2], axis=1)
    exact = LabelSums.of(logits, np.stack([often, seldom], axis=1))
    told = suppressed(exact)
    assert told.hides_confusion.tolist() == [False, True]
    assert [told.values()[key] for key in OF_CONFUSION] == [None] * 5
    assert (exact + told).hides_confusion.tolist() == [False, True]
    assert told.n == exact.n


def of_kind(task: AnyTask, seed: int) -> TaskSums:
    return sums_of(task, *answers(task, seed))


def answers(task: AnyTask, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    match task:
        case Task():
            return rng.normal(size=(CASES, task.outputs)), rng.integers(task.outputs, size=CASES)
        case Multilabel():
            return rng.normal(size=(CASES, task.outputs)), rng.integers(2, size=(CASES, task.outputs)).astype(float)
        case Regression():
            return rng.normal(size=CASES), rng.normal(size=CASES)
    rows = np.tile([15.0, 21.0, 20.0, 3.0, 0.1], (CASES, 1))
    return rows, np.zeros(CASES, np.int64)


TASKS: dict[str, AnyTask] = {
    "two": Task(classes=("a", "b")),
    "four": Task(classes=("a", "b", "c", "d")),
    "labels": Multilabel(kind="multilabel", labels=("x", "y", "z")),
    "value": Regression(kind="regression", unit="mm", mean=0, std=1),
    "mask": Segmentation(kind="segmentation"),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("rule", ["suppressed", "noised"])
def test_the_sum_over_sites_with_other_rules_can_be_read_back(name: str, rule: str) -> None:
    """As a run's record has it: the report is made of it."""
    task = TASKS[name]
    for seed in range(5):
        units = [[case] for case in range(CASES)]
        if rule == "suppressed":
            part = suppressed(of_kind(task, seed))
        else:
            part = noised_counts({"t": answers(task, seed)}, torch.arange(CASES), units, 6.0, {"t": task})["t"]
        for sums in (part, add(of_kind(task, 99), part), add(part, of_kind(task, 99))):
            back = read_sums(json.loads(json.dumps(plain(sums), allow_nan=False)))
            assert back.values() == sums.values()


def test_a_rare_class_does_not_follow_from_all_cases_and_the_other_classes() -> None:
    """Of 100, 60 and 4 cases somebody who knows that 164 are shown, and 100 and 60 of them, knows of 4."""
    truth = np.repeat([0, 1, 2], [100, 60, 4])
    logits = np.random.default_rng(0).normal(size=(164, 3)) + np.eye(3)[truth]
    told = suppressed(ClassificationSums.of(logits, truth)).scores.totals()
    shown = [at for at in range(3) if told[at].any()]
    assert shown == [0]
    assert told[0].tolist() == [64, 100]
    assert suppressed(ClassificationSums.of(np.tile(logits, (3, 1)), np.tile(truth, 3))).scores.totals().all()
