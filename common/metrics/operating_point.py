"""The operating point of a task of two classes, or of each label: chosen on validation sums, counted on test sums.

It is a log-odds on a grid of hundredths, and beyond 20 of thousandths of itself, so that it is no single patient's
score. Cases at or above it are positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgraft.common.base.value import Value
from fedgraft.common.metrics.intervals import wilson
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.score_histogram import Floats, ScoreHistogram
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.metrics.support import is_exact
from fedgraft.common.study.operating import OperatingRule
from fedgraft.common.study.tasks import AnyTask, Multilabel, Task

_STEP, _REACH = 0.01, 20.0
_GROWTH = 1.001
"""From each step to the next beyond the reach of the even ones."""


class OperatingPoint(Value):
    """From which log-odds on a case is `name` (the second class, or a label), why, and on what it was chosen."""

    name: str
    log_odds: float
    rule: str
    positives: int
    negatives: int
    sensitivity: float
    specificity: float

    @property
    def probability(self) -> float:
        """The same threshold as a probability."""
        return 1 / (1 + math.exp(-self.log_odds))


@dataclass(frozen=True)
class AtThreshold:
    """Cases by truth and by the side of the threshold that they are on."""

    found: int
    missed: int
    alarms: int
    rejected: int

    def plain(self) -> dict[str, Any]:
        """Counts, and recall, specificity, PPV and NPV with Wilson's intervals; None for what is undefined."""
        shares = {
            "recall": (self.found, self.found + self.missed),
            "specificity": (self.rejected, self.rejected + self.alarms),
            "ppv": (self.found, self.found + self.alarms),
            "npv": (self.rejected, self.rejected + self.missed),
        }
        values = {key: part / whole if whole else None for key, (part, whole) in shares.items()}
        return vars(self) | values | {"intervals": {key: wilson(*pair) for key, pair in shares.items()}}


def names_of(task: AnyTask) -> tuple[str, ...]:
    """What an operating point of this task is of, by row of its scores; nothing of tasks that have none."""
    if isinstance(task, Multilabel):
        return task.labels
    return task.classes[1:] if isinstance(task, Task) and len(task.classes) == 2 else ()


def chosen(task: AnyTask, sums: TaskSums, rule: OperatingRule, floor: int) -> list[OperatingPoint | None]:
    """By row the point that the rule asks for; None where fewer than `floor` of either kind are too few to say."""
    if not isinstance(sums, ClassificationSums | LabelSums):
        return []
    found: list[OperatingPoint | None] = []
    for row, name in enumerate(names_of(task)):
        scores, positive, negative = sums.scores.scored(row)
        m, n = int(positive.sum()), int(negative.sum())
        if min(m, n) < floor:
            found.append(None)
            continue
        grid = _grid(float(np.abs(scores).max()))
        recall, reject = _at(grid, scores, positive) / m, 1 - _at(grid, scores, negative) / n
        at = _best(recall + reject) if rule.sensitivity is None else _highest(recall >= rule.sensitivity - 1e-12)
        share = float(recall[at]), float(reject[at])
        threshold = float(grid[at])
        point = OperatingPoint(
            name=name,
            log_odds=threshold,
            rule=rule.words,
            positives=m,
            negatives=n,
            sensitivity=share[0],
            specificity=share[1],
        )
        found.append(point)
    return found


def counted(sums: TaskSums, row: int, point: OperatingPoint) -> AtThreshold | None:
    """Cases at a point; None of noised or coarse counts, whose scores are not where they were."""
    if not isinstance(sums, ClassificationSums | LabelSums) or not is_exact(sums):
        return None
    return at_threshold(sums.scores, row, point.log_odds)


def at_threshold(histogram: ScoreHistogram, row: int, log_odds: float) -> AtThreshold:
    """Cases of one row by truth and side: at or above the threshold is positive."""
    scores, positive, negative = histogram.scored(row)
    found, alarms = (int(_at(np.array([log_odds]), scores, side)[0]) for side in (positive, negative))
    return AtThreshold(found, int(positive.sum()) - found, alarms, int(negative.sum()) - alarms)


def _at(grid: Floats, scores: Floats, counts: Floats) -> Floats:
    """How many of `counts` (by score, highest first) lie at or above each threshold."""
    above = np.concatenate([[0.0], np.cumsum(counts)])
    found: Floats = above[np.searchsorted(-scores, -grid, side="right")]
    return found


def _grid(furthest: float) -> Floats:
    """Thresholds that may be chosen, low to high, of which the lowest is below every score."""
    even = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
    steps = math.ceil(math.log(max(furthest, _REACH) / _REACH) / math.log(_GROWTH))
    far = _REACH * _GROWTH ** np.arange(1, steps + 1)
    return np.round(np.concatenate([-far[::-1], even, far]), 2)


def _best(values: Floats) -> int:
    """The middle of the first stretch of thresholds that are as good as any."""
    best = np.flatnonzero(values >= values.max() - 1e-12)
    breaks = np.flatnonzero(np.diff(best) > 1)
    stretch = best[: breaks[0] + 1] if len(breaks) else best
    return int(stretch[len(stretch) // 2])


def _highest(enough: np.ndarray) -> int:
    """The last threshold that is enough; the lowest one always is."""
    return int(np.flatnonzero(enough)[-1])
