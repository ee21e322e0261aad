"""Logistic heads from sums, in a few exchanges: each a step of Newton's method, the same as on the pooled cases.

The slope of the cross-entropy is sum z (p - y)' with z = [features; 1] and p what the model says now; Boehning 1992,
"Multinomial logistic regression algorithm", bounds its curvature by sum z z' / 2 for classes, and by a quarter for each
label alone. A ridge of what is wrong, y - p, on the features, times 2 or 4, is therefore a step that never goes too
far, and both sums add up over sites. Where nothing can be told of what is wrong, heads stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.closed_form import problems_of, ridge_head, tasks_in
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.stages.aggregates import Newton

_CLASSES, _LABELS, _VALUE = 2.0, 4.0, 1.0
"""One over the bounds of the curvature."""


def stepped_heads(
    sums: Arrays, aggregate: Newton, state: Arrays, ridge_penalties: Mapping[str, float] | None = None
) -> dict[str, np.ndarray]:
    """Entries of the heads after a step, typed as in `state`, from the sums `TASK/gram` and `TASK/cross` of y - p.

    `ridge_penalties` by task replace that of `aggregate`. RunError without a single label or a penalty.
    """
    heads = {}
    for task in tasks_in(sums):
        grams, crosses, logits = problems_of(sums, task)
        ridge_penalty = (ridge_penalties or {}).get(task, aggregate.ridge_penalty)
        if isinstance(ridge_penalty, str):
            raise RunError("The ridge penalty of the step is not chosen yet.", fix="Give it as a number.")
        if not all(gram[-1, -1] for gram in grams):
            raise RunError(f"No site has a label for task {task!r}.", fix="Check the sites' label columns.")
        step = (_LABELS if sums[f"{task}/gram"].ndim == 3 else _CLASSES) if logits else _VALUE
        solved = [ridge_head(g, c, ridge_penalty, standardise=False) for g, c in zip(grams, crosses, strict=True)]
        for at, name in enumerate(("weight", "bias")):
            key = f"heads.{task}.{name}"
            moved = np.concatenate([part[at] for part in solved])
            heads[key] = (state[key] + step * moved).astype(state[key].dtype)
    return heads
