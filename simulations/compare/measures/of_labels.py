"""Metrics of labels where each case counts so many times: as `LabelSums` has them of as many copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from fedgraft.common.metrics.sums.score_histogram import (
    bins_of,
    weighted_auroc,
    weighted_average_precision,
)
from fedgraft.simulations.compare.measures.answers import Answers
from fedgraft.simulations.compare.measures.shares import Floats, Metrics, Ranked, mean_known, ratio

_OfLabel = Callable[[Floats, np.ndarray, Floats], Floats]
"""From a label's logits (N,), whether it is there (N,), and weights (rows, N), of cases where that is known."""


def _over_labels(of: _OfLabel, answers: Answers, weights: Floats) -> Floats:
    """The mean over labels for which it is defined, each over the cases where it is known."""
    found = []
    for at in range(answers.outputs.shape[1]):
        known = ~np.isnan(answers.targets[:, at])
        score = answers.outputs[known, at].astype(np.float64)
        found.append(of(score, answers.targets[known, at] == 1, weights[:, known]))
    return mean_known(np.stack(found))


def _ranked(by: Ranked, score: Floats, true: np.ndarray, weights: Floats) -> Floats:
    return by(bins_of(score), true, weights) if len(score) else np.full(len(weights), np.nan)


def _share(among: np.ndarray, hit: np.ndarray, weights: Floats) -> Floats:
    return ratio(weights @ (among & hit).astype(np.float64), weights @ among.astype(np.float64))


def _accuracy(score: Floats, true: np.ndarray, weights: Floats) -> Floats:
    return _share(np.ones_like(true), (score > 0) == true, weights)


def _recall(score: Floats, true: np.ndarray, weights: Floats) -> Floats:
    return _share(true, score > 0, weights)


def _specificity(score: Floats, true: np.ndarray, weights: Floats) -> Floats:
    return _share(~true, score <= 0, weights)


def _balanced_accuracy(score: Floats, true: np.ndarray, weights: Floats) -> Floats:
    return mean_known(np.stack([_recall(score, true, weights), _specificity(score, true, weights)]))


def _f1(score: Floats, true: np.ndarray, weights: Floats) -> Floats:
    guess = (score > 0).astype(np.float64)
    return ratio(2 * weights @ (guess * true), weights @ (guess + true))


def _loss(answers: Answers, weights: Floats) -> Floats:
    """Over all that is known of any label, each alike."""
    known = ~np.isnan(answers.targets)
    score, true = answers.outputs.astype(np.float64), np.where(known, answers.targets, 0.0)
    own = np.where(known, np.logaddexp(0, score) - score * true, 0.0).sum(axis=1)
    return ratio(weights @ own, weights @ known.sum(axis=1).astype(np.float64))


OF_LABELS: Metrics = {
    "auroc": partial(_over_labels, partial(_ranked, weighted_auroc)),
    "average_precision": partial(_over_labels, partial(_ranked, weighted_average_precision)),
    "accuracy": partial(_over_labels, _accuracy),
    "balanced_accuracy": partial(_over_labels, _balanced_accuracy),
    "recall": partial(_over_labels, _recall),
    "specificity": partial(_over_labels, _specificity),
    "f1": partial(_over_labels, _f1),
    "loss": _loss,
}
"""By name."""
