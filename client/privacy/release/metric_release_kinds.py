"""Figures of labels, values and masks as a careful site lets them out; those of classes are in `metric_release`.

One unit's k known cases count 1/k each. Of every label it puts one in all into the confusion and one into the scores;
of a value one into the count and at most one into the errors, which are cut off at `largest_error` and counted in units
of it; of masks one into the count of findings and at most one into their Dice coefficients.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.mask_metrics import MaskSums, dice
from fedgraft.common.metrics.sums.score_histogram import Counts, ScoreHistogram
from fedgraft.common.metrics.sums.value_metrics import ValueSums
from fedgraft.common.study.tasks import (
    AnyTask,
    Multilabel,
    Regression,
    Segmentation,
)

LEAST = 10
"""Smaller cells are not shown, nor groups of fewer people."""

Floats = NDArray[np.float64]


def squared_reach(task: AnyTask) -> float:
    """The square of how much one unit changes a task's counts, all together in Euclidean norm."""
    if isinstance(task, Multilabel):
        return 2.0 * len(task.labels)
    if isinstance(task, Regression | Segmentation):
        return 2.0
    return 2.0 if len(task.classes) == 2 else 1.0 + len(task.classes)


def counted(task: AnyTask, answers: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.bool_]:
    """Which cases count at all, (N,), or of labels (N, labels): what is known; of masks, those with a finding."""
    known: NDArray[np.bool_] = ~np.isnan(targets) if isinstance(task, Multilabel | Regression) else targets >= 0
    return known & (answers[:, 2] > 0) if isinstance(task, Segmentation) else known


def bounded_sums(task: Regression | Segmentation, answers: Floats, targets: Floats, weights: Floats) -> Floats:
    """The weighted count and the weighted sum of errors in units of the largest, or of Dice coefficients, (2,)."""
    there = weights > 0
    if isinstance(task, Regression):
        shares = np.minimum(np.abs(answers[there] - targets[there]) / task.largest_error, 1.0)
    else:
        shares = dice(answers[there])
    return np.array([weights[there].sum(), weights[there] @ shares])


def from_bounded(task: Regression | Segmentation, noisy: Floats) -> ValueSums | MaskSums:
    """Sums from a count and a sum with noise: a whole number of cases, and no more errors than those can make."""
    n = max(0, round(float(noisy[0])))
    share = float(np.clip(noisy[1], 0, n))
    return released_values(n, share * task.largest_error) if isinstance(task, Regression) else released_masks(n, share)


def suppressed_values(sums: ValueSums, least: int) -> ValueSums:
    """The number of cases and their mean error to two digits; nothing of fewer than `least` cases."""
    if sums.n < least:
        return released_values(0, 0.0)
    return released_values(sums.n, sums.n * float(f"{sums.absolute / sums.n:.1e}"))


def suppressed_masks(sums: MaskSums, least: int) -> MaskSums:
    """The number of findings and their mean Dice coefficient to two digits; nothing of fewer than `least` findings."""
    n = sums.findings
    return released_masks(n, n * round(sums.dice / n, 2)) if n >= least else released_masks(0, 0.0)


def released_values(n: int, absolute: float) -> ValueSums:
    """Sums of which only the number of cases and the absolute errors are known."""
    return ValueSums(n, absolute, *[math.nan] * 4)


def released_masks(n: int, dice_sum: float) -> MaskSums:
    """Sums of which only the number of findings and their Dice coefficients are known."""
    return MaskSums(n, n, 0, 0, 0, 0, 0, 0, dice_sum, math.nan, math.nan)


def released_labels(confusion: Counts, scores: ScoreHistogram) -> LabelSums:
    """Sums of which only confusions (L, 2, 2) and scores are known; as many cases as the label with most has."""
    sums = LabelSums(0, confusion, np.full(len(confusion), math.nan), scores)
    return replace(sums, cases=int(sums.known.max()))
