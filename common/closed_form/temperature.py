"""Temperatures from sums: every site adds up its loss at each temperature of one grid, and the least total wins.

The loss of a site's cases is a function of the temperature alone, and losses add up: the minimum over the sum is that
of the pooled cases, to the last bit, in one exchange. Guo et al. 2017, "On calibration of modern neural networks".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.closed_form import tasks_in
from fedgraft.common.protocol.instructions import Arrays

TEMPERATURES: NDArray[np.float64] = np.logspace(-1, 1, 81)
"""What is tried: steps of 6 %, from answers ten times as sharp to ten times as flat; 1 is among them."""

BASE_MODELS, ANSWERS, CASES = "base_models", "answers", "cases"
"""Sums are called `TASK/base models` (base models, grid) or `TASK/answers` (1, grid), beside `TASK/cases` (1,)."""

_PLACE = "backbone.temperatures.{}.values"


def class_losses(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Cross-entropy summed over known cases at each temperature, (grid,); logits (N, classes), targets (N,) or -1."""
    from scipy.special import logsumexp  # a study is checked without

    known = target >= 0
    logits, target = logits[known].astype(np.float64), target[known]
    found = np.zeros(len(TEMPERATURES))
    for at, temperature in enumerate(TEMPERATURES):
        scaled = logits / temperature
        found[at] = np.sum(logsumexp(scaled, axis=1) - scaled[np.arange(len(target)), target])
    return found


def label_losses(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Binary cross-entropy summed over the known labels (1, 0; NaN = not known) at each temperature, (grid,)."""
    from scipy.special import log_expit  # a study is checked without

    known = ~np.isnan(target)
    signed = np.where(target == 1, 1.0, -1.0)[known] * logits.astype(np.float64)[known]
    return np.array([-np.sum(log_expit(signed / temperature)) for temperature in TEMPERATURES])


def best(losses: np.ndarray) -> NDArray[np.float64]:
    """The temperature of the least loss in each row (rows, grid); of equals the one nearest to 1."""
    near = np.argsort(np.abs(np.log(TEMPERATURES)), kind="stable")
    chosen: NDArray[np.float64] = TEMPERATURES[near[np.argmin(losses[:, near], axis=1)]]
    return chosen


def tempered(sums: Arrays, state: Arrays) -> dict[str, np.ndarray]:
    """Entries with the best temperatures in them: those of an ensemble's base models, or of heads, typed as in `state`.

    What was measured is relative to the temperatures in `state`. RunError if there is not a single label.
    """
    changed: dict[str, np.ndarray] = {}
    for task in tasks_in(sums):
        if not sums[f"{task}/{CASES}"][0]:
            raise RunError(
                f"No site has a label for task {task!r} among the cases that temperatures are fitted on.",
                fix="Give validation a larger share (split.val).",
            )
        if f"{task}/{BASE_MODELS}" in sums:
            key = _PLACE.format(task)
            changed[key] = (state[key] * best(sums[f"{task}/{BASE_MODELS}"])).astype(state[key].dtype)
        else:
            (temperature,) = best(sums[f"{task}/{ANSWERS}"])
            keys = (f"heads.{task}.weight", f"heads.{task}.bias")
            changed |= {key: (state[key] / temperature).astype(state[key].dtype) for key in keys}
    return changed
