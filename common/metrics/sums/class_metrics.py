"""Mergeable sums for classification: a site sends sums, the coordinator adds them, values are made at the very end.

The value of the sum of all sites is the value of the pooled predictions; an average of sites' AUROCs is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.sums.more import WithMore
from fedgraft.common.metrics.sums.score_histogram import (
    Counts,
    Floats,
    ScoreHistogram,
    auroc,
    average_precision,
    log_odds,
    ranking,
    roc_points,
)
from fedgraft.common.study.tasks import UNKNOWN

Values = dict[str, float | None]

CALIBRATION_BINS = 15
_MOST_CASES = 1 << 40
_LARGEST_SUM = 1e60
"""No loss of float32 logits gets near, and no number of such sums overflows."""
_SHAPES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "confusion": lambda classes: (classes, classes),
    "calibration_cases": lambda _: (CALIBRATION_BINS,),
    "calibration_correct": lambda _: (CALIBRATION_BINS,),
    "calibration_confidence": lambda _: (CALIBRATION_BINS,),
    "loss": lambda _: (1,),
    "brier": lambda _: (1,),
    "score_rows": lambda classes: (1 if classes == 2 else classes,),
}
_FLOATS = ("loss", "brier", "calibration_confidence")
_SCORES = ("score_keys", "score_counts")


class Reliability(NamedTuple):
    """The calibration bins that hold cases: mean confidence, share correct, cases."""

    confidence: Floats
    accuracy: Floats
    cases: Counts


@dataclass(frozen=True, eq=False)
class ClassificationSums(WithMore):
    """All that is needed of one task's predictions; `+` is exact for counts, float64 for the three float sums.

    `confusion` (C, C): cases by [true, predicted] class, predicted being the highest logit.
    `loss_sum`: cross-entropy in nats. `brier_sum`: squared error of the probabilities, over all classes.
    `calibration_*` (15,): by equal bins of the predicted class's probability: cases, those correct, sum of
    probabilities. `scores`: one histogram of log-odds per class against the rest; of two classes, only of class 1.
    Of coarse or noised counts, loss and Brier sums are NaN, calibration is empty, and scores may count other cases; a
    confusion that policy does not let out is empty though there are scores.
    """

    confusion: Counts
    loss_sum: float
    brier_sum: float
    calibration_cases: Counts
    calibration_correct: Counts
    calibration_confidence: Floats
    scores: ScoreHistogram

    @property
    def classes(self) -> int:
        """Number of classes of the task, C."""
        return len(self.confusion)

    @property
    def n(self) -> int:
        """Number of cases with a known class; where the confusion is not let out, of those that have scores."""
        return int(self.confusion.sum()) or int(self.scores.totals().sum(axis=1).max())

    @property
    def hides_confusion(self) -> bool:
        """Whether there are cases whose confusion is not let out."""
        return len(self.scores.keys) > 0 and not self.confusion.any()

    @classmethod
    def zero(cls, classes: int) -> ClassificationSums:
        """No cases of a task of at least two `classes`."""
        if classes < 2:
            raise InputError(f"A task of {classes} classes has no metrics.", fix="Give it at least two.")
        none = np.zeros(CALIBRATION_BINS, np.int64)
        scores = ScoreHistogram.zero(1 if classes == 2 else classes)
        confusion = np.zeros((classes, classes), np.int64)
        return cls(confusion, 0.0, 0.0, none, none, np.zeros(CALIBRATION_BINS), scores)

    @classmethod
    def of(cls, logits: NDArray[Any], targets: NDArray[Any]) -> ClassificationSums:
        """Sums over logits (N, C) and targets (N,); cases whose target is -1 (not known) are left out.

        InputError for logits that are not finite, or targets that are no class.
        """
        if logits.ndim != 2 or logits.shape[1] < 2 or targets.shape != logits.shape[:1]:
            raise InputError(f"Metrics of logits {logits.shape} and targets {targets.shape}: shapes do not fit.")
        classes = logits.shape[1]
        known = targets != UNKNOWN
        truth = targets[known].astype(np.int64)
        if not len(truth):
            return cls.zero(classes)
        if truth.min() < 0 or truth.max() >= classes:
            raise InputError(f"A target is none of the {classes} classes.", fix="Use 0 to C-1, or -1 for not known.")
        score = logits[known].astype(np.float64)
        if not np.isfinite(score).all():
            raise InputError("The model's logits are not finite.", fix="Lower the learning rate.")
        return cls._of_known(score, truth)

    @classmethod
    def _of_known(cls, score: Floats, truth: Counts) -> ClassificationSums:
        cases, classes = score.shape
        rows = np.arange(cases)
        guess = score.argmax(axis=1)
        score -= score[rows, guess][:, None]
        odds = np.exp(score)
        total = odds.sum(axis=1)
        chance = odds / total[:, None]
        confidence = chance.max(axis=1)
        loss = float((np.log(total) - score[rows, truth]).sum())
        chance[rows, truth] -= 1
        cell = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        one = truth[:, None] == (np.arange(classes) if classes > 2 else np.array([1]))
        return cls(
            confusion=np.bincount(truth * classes + guess, minlength=classes**2).reshape(classes, classes),
            loss_sum=loss,
            brier_sum=float(np.vdot(chance, chance)),
            calibration_cases=np.bincount(cell, minlength=CALIBRATION_BINS),
            calibration_correct=np.bincount(cell[guess == truth], minlength=CALIBRATION_BINS),
            calibration_confidence=np.bincount(cell, confidence, CALIBRATION_BINS).astype(np.float64),
            scores=ScoreHistogram.of(log_odds(score), one),
        )

    def __add__(self, other: ClassificationSums) -> ClassificationSums:
        if self.classes != other.classes:
            raise InputError(f"Metric sums of {self.classes} and {other.classes} classes cannot be added.")
        # What one of them does not say is not known of both together.
        seen = not (self.hides_confusion or other.hides_confusion)
        loss = self.loss_sum + other.loss_sum
        exact = not math.isnan(loss)
        return ClassificationSums(
            (self.confusion + other.confusion) * seen,
            loss,
            self.brier_sum + other.brier_sum,
            (self.calibration_cases + other.calibration_cases) * exact,
            (self.calibration_correct + other.calibration_correct) * exact,
            (self.calibration_confidence + other.calibration_confidence) * exact,
            self.scores + other.scores,
        )

    def coarsen(self, bins: int) -> ClassificationSums:
        """The same sums with scores known to `bins` steps only, for a site that lets no finer ones leave."""
        return replace(self, scores=self.scores.coarsen(bins))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The sums for the wire: counts in the smallest of uint8, uint32 and int64 that holds them, sums float64."""
        keys, counts, rows = self.scores.arrays()
        integers = {
            "confusion": self.confusion,
            "calibration_cases": self.calibration_cases,
            "calibration_correct": self.calibration_correct,
            "score_counts": counts,
            "score_rows": rows,
        }
        return {
            **{key: _small(value) for key, value in integers.items()},
            "score_keys": keys.astype(np.uint32),
            "calibration_confidence": self.calibration_confidence,
            "loss": np.array([self.loss_sum]),
            "brier": np.array([self.brier_sum]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], classes: int) -> ClassificationSums:
        """From `arrays`, or from the same as lists; InputError for anything that no predictions could have given."""
        if set(arrays) != {*_SHAPES, *_SCORES}:
            raise InputError(f"Metric sums: keys {sorted(map(str, arrays))} are not those of a classification.")
        read = {key: _read(arrays, key, classes) for key in arrays}
        sums = cls(
            read["confusion"],
            float(read["loss"][0]),
            float(read["brier"][0]),
            read["calibration_cases"],
            read["calibration_correct"],
            read["calibration_confidence"],
            ScoreHistogram.from_arrays(read["score_keys"], read["score_counts"], read["score_rows"]),
        )
        _check_totals(sums)
        return sums

    def values(self) -> Values:
        """The metrics by name, plus `n`; None for what these cases leave undefined.

        recall, specificity, f1, auroc and average_precision are those of class 1 of two classes, else the mean over
        the classes for which they are defined, each against the rest. balanced_accuracy is the mean recall over
        classes that occur. brier is the squared error of class 1's probability for two classes, else the sum over
        classes. ece is the expected calibration error over 15 equal bins. All but loss (nats) lie in 0..1, brier of
        more than two classes in 0..2.
        """
        n = int(self.confusion.sum())
        hit, true, guessed = np.diag(self.confusion), self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        rejected = n - true - guessed + hit
        asked = slice(1, 2) if self.classes == 2 else slice(None)
        rows = [self.scores.ranked(row) for row in range(self.scores.rows)]
        ranked = ranking(rows, exact=not math.isnan(self.loss_sum))
        gap = np.abs(self.calibration_confidence - self.calibration_correct).sum()
        return {
            "n": self.n,
            "accuracy": _ratio(hit.sum(), n),
            "balanced_accuracy": _mean_ratio(hit, true),
            "recall": _mean_ratio(hit[asked], true[asked]),
            "specificity": _mean_ratio(rejected[asked], (n - true)[asked]),
            "f1": _mean_ratio(2 * hit[asked], (true + guessed)[asked]),
            "auroc": _mean([auroc(*pair) for pair in ranked]),
            "average_precision": _mean([average_precision(*pair) for pair in ranked]),
            "brier": _ratio(self.brier_sum / (2 if self.classes == 2 else 1), n),
            "ece": _ratio(gap, self.calibration_cases.sum()),
            "loss": _ratio(self.loss_sum, n),
        }

    def roc(self, class_index: int) -> tuple[Floats, Floats]:
        """False and true positive rates of a class against the rest, from (0, 0) to (1, 1); empty if undefined."""
        if not 0 <= class_index < self.classes:
            raise InputError(f"Class {class_index} is none of {self.classes}.")
        if self.classes > 2:
            return roc_points(*self.scores.ranked(class_index))
        positive, negative = self.scores.ranked(0)
        return roc_points(positive, negative) if class_index else roc_points(negative[::-1], positive[::-1])

    def reliability(self) -> Reliability:
        """How often the predicted class was right, by how sure the model was."""
        held = self.calibration_cases > 0
        cases = self.calibration_cases[held]
        return Reliability(self.calibration_confidence[held] / cases, self.calibration_correct[held] / cases, cases)


def _small(counts: Counts) -> NDArray[Any]:
    largest = counts.max(initial=0)
    return counts.astype(np.uint8 if largest < 1 << 8 else np.uint32 if largest < 1 << 32 else np.int64)


def _read(arrays: Mapping[str, Any], key: str, classes: int) -> NDArray[Any]:
    unknown = key in ("loss", "brier")
    try:
        given = arrays[key]
        array = np.asarray([math.nan] if unknown and isinstance(given, list) and given == [None] else given)
    except ValueError:
        raise InputError(f"Metric sums: {key} is no array.") from None
    wanted = _SHAPES[key](classes) if key in _SHAPES else (array.size,)
    if array.shape != wanted:
        raise InputError(f"Metric sums: {key} has shape {array.shape}, not {wanted}.")
    if array.size == 0:
        return np.zeros(wanted, np.int64)
    if array.dtype.kind not in ("iuf" if key in _FLOATS else "iu"):
        raise InputError(f"Metric sums: {key} holds {array.dtype}.")
    if unknown and np.isnan(array).all():
        return array.astype(np.float64)
    if (
        not np.isfinite(array).all()
        or array.min() < 0
        or array.max() > (_LARGEST_SUM if key in _FLOATS else _MOST_CASES)
    ):
        raise InputError(f"Metric sums: {key} holds a value out of range.")
    return array.astype(np.float64 if key in _FLOATS else np.int64)


def _check_totals(sums: ClassificationSums) -> None:
    n, true = int(sums.confusion.sum()), sums.confusion.sum(axis=1)
    if math.isnan(sums.loss_sum) and math.isnan(sums.brier_sum) and not sums.calibration_cases.any():
        if n > _MOST_CASES or sums.calibration_correct.any() or sums.calibration_confidence.any():
            raise InputError("Metric sums: what is said to be unknown is not empty.")
        return
    cases, correct, confidence = sums.calibration_cases, sums.calibration_correct, sums.calibration_confidence
    low = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
    slack = 1e-9 * (1 + cases)
    asked = true[1:] if sums.classes == 2 else true
    faults = {
        "the confusion matrix": n > _MOST_CASES,
        "calibration cases": cases.sum() != n,
        "calibration hits": correct.sum() != np.trace(sums.confusion) or (correct > cases).any(),
        "calibration confidence": (confidence < cases * low - slack).any()
        or (confidence > cases * (low + 1 / CALIBRATION_BINS) + slack).any(),
        "the Brier sum": not sums.brier_sum <= 2 * n * (1 + 1e-9),
        "the loss sum": math.isnan(sums.loss_sum) or (n == 0 and sums.loss_sum > 0),
        "score counts": (sums.scores.totals() != np.stack([n - asked, asked], axis=1)).any(),
    }
    for name, wrong in faults.items():
        if wrong:
            raise InputError(f"Metric sums: {name} and the number of cases do not agree.")


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole and not math.isnan(part) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known) / len(known)) if known else None


def _mean_ratio(parts: Counts, wholes: Counts) -> float | None:
    return _mean([_ratio(int(part), int(whole)) for part, whole in zip(parts, wholes, strict=True)])
