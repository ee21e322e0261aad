"""Split conformal sets: so many classes are named that the true one is among them in a share of cases.

A class is in a case's set if its log-odds against the rest reach a threshold, which is chosen on validation cases so
that, over new cases that come as these did, the true class is in the set with at least the wanted probability (Vovk et
al. 2005; Sadinle et al. 2019). Nothing of the model needs to be right for that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedgraft.common.base.value import Value
from fedgraft.common.metrics.intervals import wilson
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.score_histogram import Floats, ScoreHistogram
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.metrics.support import is_exact
from fedgraft.common.study.tasks import AnyTask, Multilabel, Task

_REACH, _STEP = 20.0, 0.01
_EXACT, _POOLED = 1e-6, 0.005
"""How much less than its entry a score may be, next to 1 plus itself: as histograms have it, and as masked sums do."""


class ConformalThreshold(Value):
    """From which log-odds on a class is in the set, and what that was chosen on.

    `name` is the label, or "" for the classes of a task. `low` and `high` are between which the coverage over very many
    new cases lies in 95 of 100 draws of so many validation cases.
    """

    name: str
    log_odds: float
    wanted: float
    cases: int
    low: float
    high: float

    @property
    def probability(self) -> float:
        """The same threshold as a probability."""
        return 1 / (1 + math.exp(-self.log_odds))


def parts_of(task: AnyTask) -> tuple[str, ...]:
    """What has a threshold of its own in a task: all classes together (""), or each label; else nothing."""
    if isinstance(task, Multilabel):
        return task.labels
    return ("",) if isinstance(task, Task) else ()


def least_cases(coverage: float) -> int:
    """With fewer validation cases than these a set would have to name all classes, to be safe."""
    return math.ceil(1 / (1 - coverage) - 1e-9) - 1


def thresholds(
    task: AnyTask, sums: TaskSums, coverage: float, *, pooled: bool = False
) -> list[ConformalThreshold | None]:
    """By part of the task the threshold that validation sums give; None with too few cases, or of sums not exact.

    Of n cases the one whose true class is the floor((n + 1) (1 - coverage))-th from below. It is rounded down to a grid
    (`pooled`: by as much as masked sums blur scores, too), so that it is no patient's own score; that makes sets
    larger, and never too small.
    """
    from scipy.special import betaincinv  # slow to import, and a check of a study needs it not

    if not isinstance(sums, ClassificationSums | LabelSums) or not is_exact(sums):
        return [None for _ in parts_of(task)]
    found: list[ConformalThreshold | None] = []
    for name, (scores, counts) in zip(parts_of(task), _true(sums), strict=True):
        n = int(counts.sum())
        left = math.floor((n + 1) * (1 - coverage) + 1e-9)
        if n == 0 or left < 1:
            found.append(None)
            continue
        order = np.argsort(scores)
        at = float(scores[order][np.searchsorted(np.cumsum(counts[order]), left)])
        low, high = (float(betaincinv(n + 1 - left, left, share)) for share in (0.025, 0.975))
        log_odds = _down(at - (_POOLED if pooled else _EXACT) * (1 + abs(at)))
        found.append(ConformalThreshold(name=name, log_odds=log_odds, wanted=coverage, cases=n, low=low, high=high))
    return found


def covered(sums: TaskSums, part: int, threshold: ConformalThreshold) -> dict[str, Any] | None:
    """What a threshold gives of test sums: `coverage`, its interval, the mean `size` of a set; None of sums not exact.

    Of two answers also the shares of sets with `one`, `both` and `none` of them.
    """
    if not isinstance(sums, ClassificationSums | LabelSums) or not is_exact(sums):
        return None
    scores, counts = list(_true(sums))[part]
    n = int(counts.sum())
    if not n:
        return None
    hit = int(counts[scores >= threshold.log_odds].sum())
    named = sum(float(all_[own >= threshold.log_odds].sum()) for own, all_ in _sides(sums, part))
    shares = _two(sums, part, threshold.log_odds, n) if _is_two(sums) else {}
    return {"n": n, "coverage": hit / n, "interval": wilson(hit, n), "size": named / n, **shares}


def _true(sums: ClassificationSums | LabelSums) -> list[tuple[Floats, Floats]]:
    """By part the log-odds of the true answer, and how many cases have them."""
    if _is_two(sums):
        pairs = [_two_sides(sums.scores, row) for row in range(sums.scores.rows)]
        return [(np.concatenate([-low, high]), np.concatenate([no, yes])) for (low, no, _), (high, yes, _) in pairs]
    rows = [sums.scores.scored(row) for row in range(sums.scores.rows)]
    return [(np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows]))]


def _sides(sums: ClassificationSums | LabelSums, part: int) -> list[tuple[Floats, Floats]]:
    """By answer its log-odds in all cases, and how many cases have them."""
    if _is_two(sums):
        (low, _, cases), (high, _, _) = _two_sides(sums.scores, part)
        return [(-low, cases), (high, cases)]
    rows = [sums.scores.scored(row) for row in range(sums.scores.rows)]
    return [(scores, positive + negative) for scores, positive, negative in rows]


def _two_sides(histogram: ScoreHistogram, row: int) -> tuple[tuple[Floats, Floats, Floats], ...]:
    """Scores, negatives and all cases; scores, positives and all cases."""
    scores, positive, negative = histogram.scored(row)
    return (scores, negative, positive + negative), (scores, positive, positive + negative)


def _two(sums: ClassificationSums | LabelSums, part: int, least: float, n: int) -> dict[str, float]:
    (low, _, cases), (high, _, _) = _two_sides(sums.scores, part)
    answers = (-low >= least).astype(int) + (high >= least)
    return {name: float(cases[answers == count].sum()) / n for name, count in (("none", 0), ("one", 1), ("both", 2))}


def _is_two(sums: ClassificationSums | LabelSums) -> bool:
    return isinstance(sums, LabelSums) or sums.classes == 2


def _down(log_odds: float) -> float:
    """The next lower step of a grid of hundredths, beyond 20 of hundredths times a power of two that keeps pace."""
    step = _STEP * 2.0 ** max(0, math.ceil(math.log2(max(abs(log_odds), _REACH) / _REACH)))
    return round(math.floor(log_odds / step) * step, 6)
