"""Mergeable sums for several yes-or-no labels, each with its own known cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    ranking,
    roc_points,
)
from fedgraft.common.metrics.sums.sum_arrays import (
    MOST_CASES,
    agree,
    count,
    exactly,
    ratio,
    total,
)

_SCORES = ("score_keys", "score_counts", "score_rows")
_OF_CONFUSION = ("accuracy", "balanced_accuracy", "recall", "specificity", "f1")


@dataclass(frozen=True, eq=False)
class LabelSums(WithMore):
    """All that is needed of one task's predicted labels; `+` is exact for counts.

    `cases` counts those with any known label. `confusion` (L, 2, 2) counts by label, [true, predicted], yes being a
    logit above 0; `loss` (L,) sums the binary cross-entropy in nats; `scores` is one histogram of logits per label. Of
    coarse or noised counts the losses are NaN, and scores may count other cases than the confusion; one that policy
    does not let out is empty though there are scores.
    """

    cases: int
    confusion: Counts
    loss: Floats
    scores: ScoreHistogram

    @property
    def labels(self) -> int:
        """Number of labels of the task, L."""
        return len(self.confusion)

    @property
    def n(self) -> int:
        """Number of cases with any known label."""
        return self.cases

    @property
    def known(self) -> Counts:
        """Cases of which each label is known, (L,); where its confusion is not let out, those that have scores."""
        shown: Counts = self.confusion.sum(axis=(1, 2))
        return np.where(shown > 0, shown, self.scores.totals().sum(axis=1))

    @property
    def hides_confusion(self) -> NDArray[np.bool_]:
        """By label whether there are cases whose confusion is not let out, (L,)."""
        hidden: NDArray[np.bool_] = self.known > self.confusion.sum(axis=(1, 2))
        return hidden

    @classmethod
    def zero(cls, labels: int) -> LabelSums:
        """The sums over no cases, for a task of so many `labels`: what `+` begins with."""
        return cls(0, np.zeros((labels, 2, 2), np.int64), np.zeros(labels), ScoreHistogram.zero(labels))

    @classmethod
    def of(cls, logits: NDArray[Any], targets: NDArray[Any]) -> LabelSums:
        """Sums over logits (N, L) and targets (N, L): 1, 0 or NaN, which is left out.

        InputError for logits that are not finite, or targets that are neither.
        """
        if logits.shape != targets.shape or logits.ndim != 2:
            raise InputError(f"Metrics of logits {logits.shape} and targets {targets.shape}: shapes do not fit.")
        known = ~np.isnan(targets)
        if not np.isin(targets[known], (0, 1)).all():
            raise InputError("A target is neither yes nor no.", fix="Use 1, 0, or NaN for not known.")
        if not np.isfinite(logits[known.any(axis=1)]).all():
            raise InputError("The model's logits are not finite.", fix="Lower the learning rate.")
        labels = logits.shape[1]
        confusion, loss, scores = np.zeros((labels, 2, 2), np.int64), np.zeros(labels), []
        for at in range(labels):
            score, truth = logits[known[:, at], at].astype(np.float64), targets[known[:, at], at] == 1
            np.add.at(confusion[at], (truth.astype(int), (score > 0).astype(int)), 1)
            loss[at] = float((np.logaddexp(0, score) - score * truth).sum())
            scores.append(ScoreHistogram.of(score[:, None], truth[:, None]))
        return cls(int(known.any(axis=1).sum()), confusion, loss, ScoreHistogram.stacked(scores))

    def __add__(self, other: LabelSums) -> LabelSums:
        if self.labels != other.labels:
            raise InputError(f"Metric sums of {self.labels} and {other.labels} labels cannot be added.")
        # What one of them does not say is not known of both together.
        seen = ~(self.hides_confusion | other.hides_confusion)
        confusion, loss = (self.confusion + other.confusion) * seen[:, None, None], self.loss + other.loss
        return LabelSums(self.cases + other.cases, confusion, loss, self.scores + other.scores)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The sums as arrays by name, as `from_arrays` takes them."""
        keys, counts, rows = self.scores.arrays()
        return {
            "cases": np.array([self.cases], np.int64),
            "label_confusion": self.confusion,
            "label_loss": self.loss,
            "score_keys": keys.astype(np.uint32),
            "score_counts": counts,
            "score_rows": rows,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], labels: int) -> LabelSums:
        """From `arrays`, or from the same as lists; InputError for anything that no predictions could have given."""
        exactly(arrays, {"cases", "label_confusion", "label_loss", *_SCORES}, "labels")
        entries = len(np.atleast_1d(np.asarray(arrays["score_keys"])))
        keys, counts = (count(arrays, key, (entries,)) if entries else np.zeros(0, np.int64) for key in _SCORES[:2])
        scores = ScoreHistogram.from_arrays(keys, counts, count(arrays, "score_rows", (labels,)))
        confusion = count(arrays, "label_confusion", (labels, 2, 2))
        sums = cls(int(count(arrays, "cases")[0]), confusion, total(arrays, "label_loss", (labels,)), scores)
        shown, whole = confusion.sum(axis=(1, 2)), not sums.hides_confusion.any()
        hidden = np.isnan(sums.loss)
        if hidden.any() != hidden.all():
            raise InputError("Metric sums: what is said to be unknown is not that of labels.")
        less = whole and shown.sum() < sums.cases
        agree({"known labels": shown.sum() > MOST_CASES or (shown > sums.cases).any() or less})
        if not hidden.all():
            agree(
                {
                    "score counts": (scores.totals() != confusion.sum(axis=2)).any(),
                    "losses": ((shown == 0) & (sums.loss > 0)).any(),
                }
            )
        return sums

    def roc(self, label: int) -> tuple[Floats, Floats]:
        """False and true positive rates of a label, from (0, 0) to (1, 1); empty if undefined."""
        return roc_points(*self.scores.ranked(label))

    def values(self) -> dict[str, float | None]:
        """The metrics by name, plus `n`: means over the labels for which they are defined; loss in nats per label."""
        true, guessed = self.confusion.sum(axis=2), self.confusion.sum(axis=1)
        hit = np.diagonal(self.confusion, axis1=1, axis2=2)
        shares = [[ratio(int(hit[at, side]), int(true[at, side])) for side in (0, 1)] for at in range(self.labels)]
        rows = [self.scores.ranked(row) for row in range(self.labels)]
        ranked = ranking(rows, exact=not np.isnan(self.loss).any())
        f1 = [ratio(2 * int(hit[at, 1]), int(true[at, 1] + guessed[at, 1])) for at in range(self.labels)]
        known = int(self.confusion.sum())
        # A mean over those labels alone whose confusion is let out would be another figure under the same name.
        untold = dict.fromkeys(_OF_CONFUSION) if self.hides_confusion.any() else {}
        return {
            "n": self.cases,
            "auroc": _mean([auroc(*pair) for pair in ranked]),
            "average_precision": _mean([average_precision(*pair) for pair in ranked]),
            "accuracy": _mean([ratio(int(hit[at].sum()), int(true[at].sum())) for at in range(self.labels)]),
            "balanced_accuracy": _mean([_mean(pair) for pair in shares]),
            "recall": _mean([pair[1] for pair in shares]),
            "specificity": _mean([pair[0] for pair in shares]),
            "f1": _mean(f1),
            "loss": None if math.isnan(self.loss.sum()) else ratio(float(self.loss.sum()), known),
        } | untold


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
