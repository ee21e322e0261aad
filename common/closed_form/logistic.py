"""Logistic heads that equal the pooled ones, by Newton's method: each exchange is one step from sums over the sites.

With z = [features; 1], p what the model says now and y what is right, the sites send the slope sum z (y - p)' and the
curvature sum (diag p - p p') x z z' (of several labels sum p (1 - p) z z' each), which add up. From there a step ends
where the pooled data's would, and close to the end every step doubles the number of right digits; a ridge's
penalty keeps the end finite where classes can be told apart without an error.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.closed_form import tasks_in
from fedgraft.common.closed_form.temperature import CASES
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.stages.aggregates import Logistic

_LOOSE = 1e-8
"""Curvature per case that is added for the biases, of which only differences count: the end stays where it is."""


def logistic_heads(sums: Arrays, aggregate: Logistic, state: Arrays) -> dict[str, np.ndarray]:
    """Entries of the heads after a step, typed as in `state`. RunError if a task has not a single label.

    By task: `TASK/gram`, the curvature, (C(d+1), C(d+1)) class by class, or (L, d+1, d+1), or (d+1, d+1) of a value;
    `TASK/cross` (d+1, C) or `TASK/value` (d+1, 1), the slope; and `TASK/cases`, (1,) or (L,). The penalty is on
    features as they are, per case, and spares biases; `auto` is the number of features per case.
    """
    heads = {}
    for task in tasks_in(sums):
        names = [f"heads.{task}.weight", f"heads.{task}.bias"]
        now = np.hstack([state[names[0]], state[names[1]][:, None]]).astype(np.float64)
        moved = np.concatenate([now[rows] + _step(*problem, aggregate, now[rows]) for rows, problem in _of(sums, task)])
        for name, part in zip(names, (moved[:, :-1], moved[:, -1]), strict=True):
            heads[name] = part.astype(state[name].dtype)
    return heads


def _of(sums: Arrays, task: str) -> Iterator[tuple[slice, tuple[np.ndarray, np.ndarray, float]]]:
    """A task's problems: the head's rows, curvature (k, k), slope (rows, d+1), and cases."""
    curvature, cases = sums[f"{task}/gram"], sums[f"{task}/{CASES}"]
    slope = sums[f"{task}/cross" if f"{task}/cross" in sums else f"{task}/value"].T
    if not all(cases > 0):
        raise RunError(f"No site has a label for task {task!r}.", fix="Check the sites' label columns.")
    if curvature.ndim == 2:
        yield slice(None), (curvature, slope, float(cases[0]))
        return
    for row in range(len(curvature)):
        yield slice(row, row + 1), (curvature[row], slope[row : row + 1], float(cases[row]))


def _step(curvature: np.ndarray, slope: np.ndarray, cases: float, aggregate: Logistic, now: np.ndarray) -> np.ndarray:
    """The step (rows, d+1): Newton's, or shorter where it would move answers further than a first one ever does.

    From heads that say nothing, the root of the step's mean square in units of the curvature is at most 1 for two
    classes, and sqrt(C - 1) for C: a longer one is of a model that runs away.
    """
    from scipy import linalg  # a study is checked without

    rows, width = slope.shape
    penalty = (width - 1) / cases if aggregate.ridge_penalty == "auto" else aggregate.ridge_penalty
    held = np.tile(np.append(np.full(width - 1, cases * penalty), 0.0), rows)
    loose = np.tile(np.append(np.zeros(width - 1), cases * _LOOSE), rows)
    uphill = slope.ravel() - held * now.ravel()
    step = linalg.solve(curvature + np.diag(held + loose), uphill, assume_a="pos")
    length = float(np.sqrt(max(0.0, uphill @ step) / cases))
    longest = np.sqrt(max(1, rows - 1))
    return np.asarray(step * (longest / max(length, longest))).reshape(rows, width)
