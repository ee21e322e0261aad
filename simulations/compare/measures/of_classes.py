"""Metrics of classes where each case counts so many times: as `ClassificationSums` has them of as many copies."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.special import logsumexp

from fedgraft.common.metrics.sums.class_metrics import CALIBRATION_BINS
from fedgraft.common.metrics.sums.score_histogram import ranks, weighted_auroc, weighted_average_precision
from fedgraft.simulations.compare.measures.answers import Answers
from fedgraft.simulations.compare.measures.shares import Floats, Metrics, Ranked, mean_known, ratio


def _ranked(by: Ranked, answers: Answers, weights: Floats) -> Floats:
    """Of class 1 of two classes, else the mean over classes against the rest."""
    bins, classes = ranks(answers.outputs).T, answers.outputs.shape[1]
    asked = range(1, 2) if classes == 2 else range(classes)
    return mean_known(
        np.stack([by(own, answers.targets == row, weights) for own, row in zip(bins, asked, strict=True)])
    )


def _hit(answers: Answers) -> Floats:
    return np.asarray(answers.outputs.argmax(axis=1) == answers.targets, np.float64)


def _accuracy(answers: Answers, weights: Floats) -> Floats:
    return ratio(weights @ _hit(answers), weights.sum(axis=1))


def _counts(answers: Answers, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """By class, (classes, rows): cases that were hit, that are of it, and that were said to be."""
    classes, hit, guess = range(answers.outputs.shape[1]), _hit(answers), answers.outputs.argmax(axis=1)
    true = [(answers.targets == one).astype(np.float64) for one in classes]
    return (
        np.stack([weights @ (hit * own) for own in true]),
        np.stack([weights @ own for own in true]),
        np.stack([weights @ (guess == one).astype(np.float64) for one in classes]),
    )


def _asked(table: Floats) -> Floats:
    return table[1:] if len(table) == 2 else table


def _balanced_accuracy(answers: Answers, weights: Floats) -> Floats:
    hit, true, _ = _counts(answers, weights)
    return mean_known(ratio(hit, true))


def _recall(answers: Answers, weights: Floats) -> Floats:
    hit, true, _ = map(_asked, _counts(answers, weights))
    return mean_known(ratio(hit, true))


def _specificity(answers: Answers, weights: Floats) -> Floats:
    hit, true, guessed = map(_asked, _counts(answers, weights))
    cases = weights.sum(axis=1)
    return mean_known(ratio(cases - true - guessed + hit, cases - true))


def _f1(answers: Answers, weights: Floats) -> Floats:
    hit, true, guessed = map(_asked, _counts(answers, weights))
    return mean_known(ratio(2 * hit, true + guessed))


def _log_chances(answers: Answers) -> Floats:
    logits = answers.outputs.astype(np.float64)
    return np.asarray(logits - logsumexp(logits, axis=1, keepdims=True))


def _brier(answers: Answers, weights: Floats) -> Floats:
    chances, classes = np.exp(_log_chances(answers)), answers.outputs.shape[1]
    error = ((chances - np.eye(classes)[answers.targets]) ** 2).sum(axis=1) / (2 if classes == 2 else 1)
    return ratio(weights @ error, weights.sum(axis=1))


def _ece(answers: Answers, weights: Floats) -> Floats:
    confidence = np.exp(_log_chances(answers)).max(axis=1)
    cell = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gap = weights @ (np.eye(CALIBRATION_BINS)[cell] * (confidence - _hit(answers))[:, None])
    return ratio(np.abs(gap).sum(axis=1), weights.sum(axis=1))


def _loss(answers: Answers, weights: Floats) -> Floats:
    own = -_log_chances(answers)[np.arange(len(answers.targets)), answers.targets]
    return ratio(weights @ own, weights.sum(axis=1))


OF_CLASSES: Metrics = {
    "auroc": partial(_ranked, weighted_auroc),
    "average_precision": partial(_ranked, weighted_average_precision),
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "recall": _recall,
    "specificity": _specificity,
    "f1": _f1,
    "brier": _brier,
    "ece": _ece,
    "loss": _loss,
}
"""By name."""
