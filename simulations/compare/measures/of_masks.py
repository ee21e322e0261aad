"""Metrics of masks where each image counts so many times: as `MaskSums` has them of as many copies."""

from __future__ import annotations

import numpy as np

from fedgraft.common.metrics.sums.mask_metrics import COLUMNS, dice
from fedgraft.simulations.compare.measures.answers import Answers
from fedgraft.simulations.compare.measures.shares import Floats, Metrics, ratio


def _column(answers: Answers, name: str) -> Floats:
    return np.asarray(answers.outputs[:, COLUMNS.index(name)], np.float64)


def _mean_among(values: Floats, among: np.ndarray, weights: Floats) -> Floats:
    """The mean over the images that are `among` those that count."""
    return ratio(weights @ np.where(among, values, 0.0), weights @ among.astype(np.float64))


def _dice(answers: Answers, weights: Floats) -> Floats:
    return _mean_among(dice(answers.outputs), _column(answers, "true") > 0, weights)


def _dice_pooled(answers: Answers, weights: Floats) -> Floats:
    whole = _column(answers, "predicted") + _column(answers, "true")
    return ratio(2 * weights @ _column(answers, "both"), weights @ whole)


def _hd95_mm(answers: Answers, weights: Floats) -> Floats:
    """Over images where both masks are drawn and the size of pixels is known."""
    distance = _column(answers, "distance_mm")
    return _mean_among(distance, ~np.isnan(distance), weights)


def _missed(answers: Answers, weights: Floats) -> Floats:
    drawn = _column(answers, "predicted") > 0
    return _mean_among((~drawn).astype(np.float64), _column(answers, "true") > 0, weights)


def _alarms(answers: Answers, weights: Floats) -> Floats:
    drawn = _column(answers, "predicted") > 0
    return _mean_among(drawn.astype(np.float64), _column(answers, "true") == 0, weights)


def _loss(answers: Answers, weights: Floats) -> Floats:
    return ratio(weights @ _column(answers, "loss"), weights.sum(axis=1))


OF_MASKS: Metrics = {
    "dice": _dice,
    "dice_pooled": _dice_pooled,
    "hd95_mm": _hd95_mm,
    "missed": _missed,
    "alarms": _alarms,
    "loss": _loss,
}
"""By name."""
