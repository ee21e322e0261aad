"""Figures of the test cases as a careful site lets them out: counts with noise, or coarse ones without the small.

Both leave once in a study. Exact figures in every round are an oracle: each tells the sum of some labels, and a hundred
of them give away a hundred labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from client.privacy import secret
from client.privacy.guard import Guard, Replay
from common.metrics import CALIBRATION_BINS, ClassificationSums
from common.orders import Arrays
from common.score_histogram import Counts, Floats, ScoreHistogram

BINS = 16
"""Of the scores, few enough for noise. Ties within a bin lower AUROC, of calibrated scores by about .005."""

LEAST = 10
"""Smaller cells are not shown."""

_SPREAD = 2.0
"""Log-odds per step of the logistic grid of scores.

Of 1, 1.5, 2, 3 and 4 it lowers AUROC least at the median of 54 made cases of different separation, prevalence and
temperature: by .007. The worst is by .1, of rare cases whose scores hardly differ.
"""


Answers = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
"""By task logits (N, classes) and targets (N,)."""


def release(
    guard: Guard, exchange: int, model: str, predict: Callable[[], Answers], cases: tuple[Tensor, Sequence[Tensor]]
) -> dict[str, Arrays]:
    """Counts of the test cases as policy lets them out, by task; none, or those that were released before.

    `model` is the digest of the model that is asked about, `predict` asks it; `cases` are the labelled ones and their
    units. Raises Refused.
    """
    labelled, units = cases
    try:
        if guard.metrics == "noised":
            sigma = guard.charge_metrics(exchange, model)
            shown = noised_counts(predict(), labelled, units, sigma)
        elif guard.metrics == "suppressed":
            guard.admit_metrics(exchange)
            shown = {task: suppressed(ClassificationSums.of(*pair)) for task, pair in predict().items()}
        else:
            return {}
    except Replay as replay:
        return _by_task(replay.shared)
    metrics: dict[str, Arrays] = {task: sums.arrays() for task, sums in shown.items()}
    guard.keep(exchange, {f"{task}/{key}": array for task, own in metrics.items() for key, array in own.items()}, {})
    return metrics


def bound(classes: Sequence[int]) -> float:
    """How much one unit changes all counts together, for tasks of so many classes.

    A unit of k cases counts each as 1/k, so that it puts one in all into the confusion and one into each row of scores.
    """
    return math.sqrt(sum(1 + _rows(count) for count in classes))


def noised_counts(
    answers: Answers,
    labelled: Tensor,
    units: Sequence[Tensor],
    sigma: float,
) -> dict[str, ClassificationSums]:
    """By task the confusion and coarse scores with Gaussian noise, made whole numbers again.

    `answers` are logits and targets of the cases `labelled`; `units` their positions in the cohort by unit. Counts are
    of units, not of cases.
    """
    deviation = sigma * bound([logits.shape[1] for logits, _ in answers.values()])
    place = {case: at for at, case in enumerate(labelled.tolist())}
    shown = {}
    for task, (logits, targets) in answers.items():
        weights = np.zeros(len(targets))
        for unit in units:
            known = [at for case in unit.tolist() if targets[at := place[case]] >= 0]
            weights[known] = 1 / max(len(known), 1)
        shown[task] = _noised(logits, targets, weights, deviation)
    return shown


def suppressed(sums: ClassificationSums) -> ClassificationSums:
    """The confusion without cells below ten, and scores in bins of at least ten cases of either kind.

    A class with fewer than ten cases, or with all but so few, has no scores, and so no AUROC.
    """
    coarse = sums.scores.coarsen(BINS, _SPREAD)
    rows = [_merged(*coarse.ranked(row)) for row in range(coarse.rows)]
    return _partial(np.where(sums.confusion >= LEAST, sums.confusion, 0), rows)


def _noised(
    logits: NDArray[np.float32], targets: NDArray[np.int64], weights: Floats, deviation: float
) -> ClassificationSums:
    confusion, rows = counts(logits, targets, weights)
    noisy = [part + deviation * secret.normal(part.size).reshape(part.shape) for part in (confusion, *rows)]
    whole = [np.stack([_whole(cells[:, 0]), _whole(cells[:, 1])], axis=1) for cells in noisy[1:]]
    return _partial(_whole(noisy[0]), whole)


def counts(
    logits: NDArray[np.float32], targets: NDArray[np.int64], weights: Floats
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


def _rows(classes: int) -> int:
    return 1 if classes == 2 else classes


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


def _merged(positive: Floats, negative: Floats) -> Counts:
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


def _partial(confusion: Counts, rows: Sequence[Counts]) -> ClassificationSums:
    """Sums of which only the confusion and the scores, (bins, 2) per row from low to high, are told."""
    parts = []
    for cells in rows:
        centre = (np.arange(len(cells)) + 0.5) / max(len(cells), 1)
        score = np.repeat(_SPREAD * np.log(centre / (1 - centre)), cells.sum(axis=1))
        truth = np.concatenate([np.zeros(0, bool), *(np.repeat([False, True], pair) for pair in cells)])
        parts.append(ScoreHistogram.of(score[:, None], truth[:, None]))
    none = np.zeros(CALIBRATION_BINS, np.int64)
    scores, empty = ScoreHistogram.stacked(parts), np.zeros(CALIBRATION_BINS)
    return ClassificationSums(confusion, math.nan, math.nan, none, none, empty, scores)
