"""Metrics of values where each case counts so many times: as `ValueSums` has them of as many copies."""

from __future__ import annotations

import numpy as np

from fedgraft.simulations.compare.measures.answers import Answers
from fedgraft.simulations.compare.measures.shares import Floats, Metrics, ratio


def _error(answers: Answers) -> Floats:
    return np.asarray(answers.outputs.astype(np.float64) - answers.targets)


def _mae(answers: Answers, weights: Floats) -> Floats:
    return ratio(weights @ np.abs(_error(answers)), weights.sum(axis=1))


def _rmse(answers: Answers, weights: Floats) -> Floats:
    return np.asarray(np.sqrt(ratio(weights @ _error(answers) ** 2, weights.sum(axis=1))))


def _r2(answers: Answers, weights: Floats) -> Floats:
    """Not defined where all values are alike."""
    true = answers.targets.astype(np.float64)
    squares = weights @ true**2
    spread = squares - ratio((weights @ true) ** 2, weights.sum(axis=1))
    differ = np.where(spread > 1e-12 * squares, spread, 0.0)
    return np.asarray(1 - ratio(weights @ _error(answers) ** 2, differ))


OF_VALUES: Metrics = {"mae": _mae, "rmse": _rmse, "r2": _r2}
"""By name."""
