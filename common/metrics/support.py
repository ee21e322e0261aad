"""What a figure rests on: positives and negatives, whether they are enough to say anything, and its interval.

All of it is made of the sums that are there. Where policy lets out noised or coarse counts alone, those are the
support, and there is no interval: what noise adds to the doubt is in no formula for exact counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np

from fedgraft.common.metrics.intervals import (
    Interval,
    Z,
    auroc_interval,
    deviation,
    mean_interval,
    mean_of_proportions,
    wilson,
)
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.mask_metrics import MaskSums
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.metrics.sums.value_metrics import ValueSums

TOO_FEW = "too few to say"
"""What stands in place of a figure of so few cases."""

FLOOR = 10
"""Of either class: below it a site's figure says more of its few cases than of the model."""


@dataclass(frozen=True)
class Support:
    """The cases that a site's figures of one task are made of.

    `positives` and `negatives` are by row of the scores: of class 1 of two classes, of each class against the rest, or
    of each label; of masks, images with a finding and those without; of values, all cases and none.
    `effective` is how many cases of either class a task of two classes would need to be as sure.
    """

    n: int
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    effective: float

    def plain(self, floor: int) -> dict[str, Any]:
        """As a run's record has it."""
        return {
            "n": self.n,
            "positives": list(self.positives),
            "negatives": list(self.negatives),
            "effective": round(self.effective, 1),
            "enough": self.effective >= floor,
        }


def support(sums: TaskSums) -> Support:
    """What the figures of these sums rest on.

    Of two classes `effective` is the smaller one. Of C classes the mean over classes has the variance of its rows,
    which goes with one over the smaller side n of each: C (C - 1) / sum(1 / n), over the classes that occur. So one
    case of a rare class is too few, and a few of each of four may be enough. Of labels it is the harmonic mean.
    """
    if isinstance(sums, ValueSums):
        return Support(sums.n, (sums.n,), (0,), sums.n)
    if isinstance(sums, MaskSums):
        return Support(sums.n, (sums.findings,), (sums.cases - sums.findings,), sums.findings)
    if isinstance(sums, ClassificationSums | LabelSums):
        negatives, positives = (tuple(map(int, side)) for side in sums.scores.totals().T)
        smaller = [float(min(pair)) for pair in zip(positives, negatives, strict=True) if min(pair) > 0]
        return Support(sums.n, positives, negatives, _effective(sums, smaller))
    assert_never(sums)


def _effective(sums: ClassificationSums | LabelSums, smaller: Sequence[float]) -> float:
    if not smaller:
        return 0.0
    parts, rows = sum(1 / n for n in smaller), len(smaller)
    if isinstance(sums, LabelSums):
        return rows / parts
    return 1 / parts if sums.classes == 2 else rows * (rows - 1) / parts


def is_exact(sums: TaskSums) -> bool:
    """Whether these are counts as they are, and neither noised nor coarse."""
    if isinstance(sums, ValueSums):
        return not math.isnan(sums.squared)
    if isinstance(sums, MaskSums):
        return not math.isnan(sums.loss)
    return not math.isnan(sums.loss_sum if isinstance(sums, ClassificationSums) else float(sums.loss.sum()))


def intervals(sums: TaskSums) -> dict[str, Interval]:
    """By metric its 95 % interval, for those that have one; none of noised or coarse sums."""
    if isinstance(sums, ValueSums):
        found = _of_values(sums)
    elif isinstance(sums, MaskSums):
        found = _of_masks(sums)
    elif isinstance(sums, LabelSums):
        found = _of_labels(sums)
    elif isinstance(sums, ClassificationSums):
        found = _of_classes(sums)
    else:
        assert_never(sums)
    return {metric: interval for metric, interval in found.items() if interval is not None}


def _of_classes(sums: ClassificationSums) -> dict[str, Interval | None]:
    if not is_exact(sums):
        return {}
    hit, true, guessed = np.diag(sums.confusion), sums.confusion.sum(axis=1), sums.confusion.sum(axis=0)
    rejected, others = sums.n - true - guessed + hit, sums.n - true
    asked = slice(1, 2) if sums.classes == 2 else slice(None)
    return {
        "accuracy": wilson(int(hit.sum()), sums.n),
        "balanced_accuracy": mean_of_proportions(hit.tolist(), true.tolist(), apart=True),
        "recall": mean_of_proportions(hit[asked].tolist(), true[asked].tolist(), apart=True),
        "specificity": mean_of_proportions(rejected[asked].tolist(), others[asked].tolist(), apart=False),
        "auroc": auroc_interval([sums.scores.ranked(row) for row in range(sums.scores.rows)]),
    }


def _of_labels(sums: LabelSums) -> dict[str, Interval | None]:
    if not is_exact(sums):
        return {}
    true, hit = sums.confusion.sum(axis=2), np.diagonal(sums.confusion, axis1=1, axis2=2)
    both, any_ = (true > 0).all(axis=1), (true > 0).any(axis=1)
    pairs = (hit[both].ravel().tolist(), true[both].ravel().tolist()) if (both == any_).all() else ([], [])
    return {
        "accuracy": mean_of_proportions(hit.sum(axis=1).tolist(), true.sum(axis=1).tolist(), apart=False),
        "balanced_accuracy": mean_of_proportions(*pairs, apart=False),
        "recall": mean_of_proportions(hit[:, 1].tolist(), true[:, 1].tolist(), apart=False),
        "specificity": mean_of_proportions(hit[:, 0].tolist(), true[:, 0].tolist(), apart=False),
        "auroc": auroc_interval([sums.scores.ranked(row) for row in range(sums.labels)]),
    }


def _of_values(sums: ValueSums) -> dict[str, Interval | None]:
    return {
        "mae": mean_interval(sums.absolute, sums.squared, sums.n),
        "bias": mean_interval(sums.signed, sums.squared, sums.n),
    }


def _of_masks(sums: MaskSums) -> dict[str, Interval | None]:
    if not is_exact(sums):
        return {}
    return {
        "dice": wilson(sums.dice, sums.findings),
        "missed": wilson(sums.missed, sums.findings),
        "alarms": wilson(sums.alarms, sums.cases - sums.findings),
    }


def equal_mean(values: Mapping[str, float], found: Mapping[str, Interval]) -> dict[str, Any]:
    """The mean over sites, each counting the same, with its interval if every site has one."""
    mean = sum(values.values()) / len(values)
    if set(found) != set(values):
        return {"value": mean, "low": None, "high": None, "sites": len(values)}
    reach = Z * math.sqrt(sum(deviation(interval) ** 2 for interval in found.values())) / len(values)
    return {"value": mean, "low": mean - reach, "high": mean + reach, "sites": len(values)}


def precise_mean(values: Mapping[str, float], found: Mapping[str, Interval]) -> dict[str, Any] | None:
    """The mean over sites by precision: each counts one over its squared standard error. None unless all have one."""
    if set(found) != set(values) or not all(deviation(interval) > 0 for interval in found.values()):
        return None
    weights = {site: deviation(interval) ** -2 for site, interval in found.items()}
    whole = sum(weights.values())
    mean = sum(weights[site] * value for site, value in values.items()) / whole
    reach = Z / math.sqrt(whole)
    return {"value": mean, "low": mean - reach, "high": mean + reach, "sites": len(values)}
