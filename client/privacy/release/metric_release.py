"""Figures of the test cases as a careful site lets them out: counts with noise, or coarse ones without the small.

Both leave once in a study. Exact figures in every round are an oracle: each tells the sum of some labels, and a hundred
of them give away a hundred labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from fedgraft.client.privacy.dp.noise import noised, widened
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.ledger.reply_store import Replay
from fedgraft.client.privacy.release.metric_release_kinds import (
    LEAST,
    bounded_sums,
    counted,
    from_bounded,
    released_labels,
    squared_reach,
    suppressed_masks,
    suppressed_values,
)
from fedgraft.client.privacy.release.subgroup_release import CaseGroups
from fedgraft.common.metrics.sums.class_metrics import CALIBRATION_BINS, ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.mask_metrics import MaskSums
from fedgraft.common.metrics.sums.score_histogram import Counts, Floats, ScoreHistogram
from fedgraft.common.metrics.sums.task_metrics import TaskSums, sums_of
from fedgraft.common.metrics.sums.value_metrics import ValueSums
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.tasks import (
    AnyTask,
    Multilabel,
    Regression,
    Segmentation,
)

BINS = 16
"""Of the scores, few enough for noise. Ties within a bin lower AUROC, of calibrated scores by about .005."""

_SPREAD = 2.0
"""Log-odds per step of the logistic grid of scores.

Of 1, 1.5, 2, 3 and 4 it lowers AUROC least at the median of 54 made cases of different separation, prevalence and
temperature: by .007. The worst is by .1, of rare cases whose scores hardly differ.
"""


Answers = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
"""By task answers and targets, as `fedgraft.client.training.model.evaluate` gives them."""

Tasks = Mapping[str, AnyTask]


@dataclass(frozen=True)
class TestCases:
    """The labelled ones by position, their positions by unit, and the subgroups that they are in."""

    labelled: Tensor
    units: Sequence[Sequence[int]]
    groups: CaseGroups


def release(
    guard: PrivacyGuard,
    exchange: int,
    model: str,
    predict: Callable[[], Answers],
    cases: TestCases,
    tasks: Tasks,
) -> dict[str, Arrays]:
    """Counts of the test cases as policy lets them out, by task; none, or those that were released before.

    `model` is the digest of the model that is asked about, `predict` asks it. Raises Refused.
    """
    try:
        if guard.metrics == "noised":
            noise_multiplier = guard.charge_metrics(exchange, model)
            shown = noised_counts(predict(), cases.labelled, cases.units, noise_multiplier, tasks)
        elif guard.metrics == "suppressed":
            guard.admit_metrics(exchange)
            answers = predict()
            shown = {task: suppressed(sums_of(tasks[task], *pair)) for task, pair in answers.items()}
            shown |= cases.groups.coarse(answers, tasks, without_confusion)
        else:
            return {}
    except Replay as replay:
        return _by_task(replay.shared)
    metrics: dict[str, Arrays] = {task: sums.arrays() for task, sums in shown.items()}
    guard.keep_metrics(
        exchange, {f"{task}/{key}": array for task, own in metrics.items() for key, array in own.items()}
    )
    return metrics


def bound(tasks: Iterable[AnyTask]) -> float:
    """How much one unit changes all counts of these tasks together.

    A unit of k cases counts each as 1/k, so that it puts one in all into the confusion and one into each row of scores.
    """
    return math.sqrt(sum(map(squared_reach, tasks)))


def noised_counts(
    answers: Answers, labelled: Tensor, units: Sequence[Sequence[int]], noise_multiplier: float, tasks: Tasks
) -> dict[str, TaskSums]:
    """By task counts with Gaussian noise, made whole numbers again: confusion and coarse scores, or bounded sums.

    `answers` are those to the cases `labelled`; `units` their positions in the cohort by unit. Counts are of units, not
    of cases.
    """
    asked = [tasks[task] for task in answers]
    deviation = widened(noise_multiplier * bound(asked), bound(asked), sum(map(_numbers, asked)))
    place = {case: at for at, case in enumerate(labelled.tolist())}
    places = [[place[case] for case in unit] for unit in units]
    return {task: _noised(tasks[task], *pair, places, deviation) for task, pair in answers.items()}


def _numbers(task: AnyTask) -> int:
    """How many counts of a task leave."""
    if isinstance(task, Regression | Segmentation):
        return 2
    cells = 2 * BINS
    if isinstance(task, Multilabel):
        return len(task.labels) * (4 + cells)
    classes = len(task.classes)
    return classes**2 + (1 if classes == 2 else classes) * cells


def suppressed(sums: TaskSums) -> TaskSums:
    """The confusion if no cell of it is below ten, and scores in bins of at least ten cases of either kind.

    Without its small cells alone it would say that there are no errors where there are few, and those cells follow from
    the numbers of cases by class, which the scores tell. A class with fewer than ten cases, or with all but so few, has
    no scores, and so no AUROC. Of values and masks the mean error and the mean Dice coefficient, to two digits, if
    there are ten or more.
    """
    if isinstance(sums, ValueSums):
        return suppressed_values(sums, LEAST)
    if isinstance(sums, MaskSums):
        return suppressed_masks(sums, LEAST)
    coarse = sums.scores.coarsen(BINS, _SPREAD)
    rows = [_aggregated(*coarse.ranked(row)) for row in range(coarse.rows)]
    if isinstance(sums, ClassificationSums) and sums.classes > 2:
        rows = _none_by_difference(rows)
    whole = (sums.confusion >= LEAST).all(axis=(-2, -1), keepdims=True)  # of labels, each has its own
    confusion = sums.confusion * whole
    return released_labels(confusion, _scores(rows)) if isinstance(sums, LabelSums) else _partial(confusion, rows)


def without_confusion(sums: TaskSums) -> TaskSums:
    """As `suppressed`, for a group whose confusion would tell, by subtraction, that of the cases outside it."""
    if isinstance(sums, ClassificationSums | LabelSums):
        sums = replace(sums, confusion=np.zeros_like(sums.confusion))
    return suppressed(sums)


def _noised(
    task: AnyTask,
    answers: NDArray[Any],
    targets: NDArray[Any],
    places: Sequence[Sequence[int]],
    deviation: float,
) -> TaskSums:
    known = counted(task, answers, targets)
    if isinstance(task, Regression | Segmentation):
        sums = bounded_sums(task, answers, targets, _weights(known, places))
        return from_bounded(task, noised(sums, deviation))
    if not isinstance(task, Multilabel):
        return _partial(*_noised_cells(answers, targets, _weights(known, places), deviation))
    confusions, rows = [], []
    for label in range(len(task.labels)):
        there = known[:, label]
        logits = np.stack([np.zeros(len(answers)), answers[:, label]], axis=1)
        truth = np.where(there, targets[:, label], 0).astype(np.int64)
        confusion, (cells,) = _noised_cells(logits, truth, _weights(there, places), deviation)
        confusions.append(confusion)
        rows.append(cells)
    return released_labels(np.stack(confusions), _scores(rows))


def _weights(known: NDArray[np.bool_], places: Sequence[Sequence[int]]) -> Floats:
    """What each case counts: one over the number of its unit's known cases."""
    weights = np.zeros(len(known))
    for unit in places:
        own = [at for at in unit if known[at]]
        weights[own] = 1 / max(len(own), 1)
    return weights


def _noised_cells(
    logits: NDArray[Any], targets: NDArray[np.int64], weights: Floats, deviation: float
) -> tuple[Counts, list[Counts]]:
    confusion, rows = counts(logits, targets, weights)
    noisy = [noised(part, deviation) for part in (confusion, *rows)]
    whole = [np.stack([_whole(cells[:, 0]), _whole(cells[:, 1])], axis=1) for cells in noisy[1:]]
    return _whole(noisy[0]), whole


def counts(
    logits: NDArray[Any], targets: NDArray[np.int64], weights: Floats
) -> tuple[Floats, list[NDArray[np.float64]]]:
    """Confusion (classes, classes) and by row of scores the cells (bins, 2), by truth, each case with its weight."""
    classes, counted = logits.shape[1], weights > 0
    score, truth, weight = logits[counted].astype(np.float64), targets[counted], weights[counted]
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (truth, score.argmax(axis=1)), weight)
    rows = []
    for asked in range(1, 2) if classes == 2 else range(classes):
        rest = np.delete(score, asked, axis=1)
        share = 0.5 + 0.5 * np.tanh(0.5 * (score[:, asked] - logsumexp(rest, axis=1)) / _SPREAD)
        cells = np.zeros((BINS, 2))
        np.add.at(cells, (np.minimum(share * BINS, BINS - 1).astype(int), (truth == asked).astype(int)), weight)
        rows.append(cells)
    return confusion, rows


def _by_task(flat: Arrays) -> dict[str, Arrays]:
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in flat.items():
        task, _, key = name.partition("/")
        found.setdefault(task, {})[key] = array
    return dict(found)


def _whole(noised: Floats) -> Counts:
    """The nearest whole numbers that are no less than 0 and have the same sum, or 0 in all if that is negative.

    Cutting off what is negative and no more would add cases that are not there, most where there are fewest.
    """
    total, flat = max(0, round(float(noised.sum()))), noised.ravel()
    ordered = np.sort(flat)[::-1]
    excess = (np.cumsum(ordered) - total) / np.arange(1, len(flat) + 1)
    shift = excess[np.flatnonzero(ordered > excess)[-1]] if total else math.inf
    above = np.maximum(flat - shift, 0.0)
    whole = np.floor(above).astype(np.int64)
    missing = total - int(whole.sum())
    whole[np.argsort(whole - above, kind="stable")[: max(missing, 0)]] += 1
    return whole.reshape(noised.shape)


def _aggregated(positive: Floats, negative: Floats) -> Counts:
    """Neighbouring bins together until each has enough of both kinds, (bins, 2) from low scores to high."""
    if min(positive.sum(), negative.sum()) < LEAST:
        return np.zeros((0, 2), np.int64)
    bins: list[list[int]] = []
    for pair in zip(negative.astype(int)[::-1], positive.astype(int)[::-1], strict=True):
        if bins and min(bins[-1]) < LEAST:
            bins[-1] = [have + more for have, more in zip(bins[-1], pair, strict=True)]
        else:
            bins.append(list(pair))
    if len(bins) > 1 and min(bins[-1]) < LEAST:
        last = bins.pop()
        bins[-1] = [have + more for have, more in zip(bins[-1], last, strict=True)]
    return np.array(bins, dtype=np.int64)


def _none_by_difference(rows: Sequence[Counts]) -> list[Counts]:
    """Rows of several classes, of which none is left out alone: its cases would be all cases less those of the others.

    The smallest of the rest goes with it, until those that are left out are enough together.
    """
    shown = {at: cells for at, cells in enumerate(rows) if len(cells)}
    while shown and len(shown) < len(rows):
        cases = next(iter(shown.values())).sum()
        if cases - sum(cells[:, 1].sum() for cells in shown.values()) >= LEAST:
            break
        del shown[min(shown, key=lambda at: (shown[at][:, 1].sum(), at))]
    return [shown.get(at, np.zeros((0, 2), np.int64)) for at in range(len(rows))]


def _partial(confusion: Counts, rows: Sequence[Counts]) -> ClassificationSums:
    """Sums of which only the confusion and the scores, (bins, 2) per row from low to high, are known."""
    none, empty = np.zeros(CALIBRATION_BINS, np.int64), np.zeros(CALIBRATION_BINS)
    return ClassificationSums(confusion, math.nan, math.nan, none, none, empty, _scores(rows))


def _scores(rows: Sequence[Counts]) -> ScoreHistogram:
    parts = []
    for cells in rows:
        centre = (np.arange(len(cells)) + 0.5) / max(len(cells), 1)
        score = np.repeat(_SPREAD * np.log(centre / (1 - centre)), cells.sum(axis=1))
        truth = np.concatenate([np.zeros(0, bool), *(np.repeat([False, True], pair) for pair in cells)])
        parts.append(ScoreHistogram.of(score[:, None], truth[:, None]))
    return ScoreHistogram.stacked(parts)
