"""The ridge penalty from the sites' own sums: exact leave-one-site-out errors, without another exchange.

The squared error of a head W on a site's cases is, with z = [features; 1], G = sum z z', C = sum z y',

    sum |y - W' z|^2 = sum |y|^2 - 2 tr(W' C) + tr(W' G W),

and the head of all other sites follows from the sums without that site's. sum |y|^2 is the same for all penalties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.closed_form import problems_of, ridge_head, tasks_in
from fedgraft.common.closed_form.penalty import RIDGE_PENALTIES
from fedgraft.common.protocol.instructions import Arrays


def choose(
    sites: Sequence[Arrays], penalties: Sequence[float] = RIDGE_PENALTIES, *, standardise: bool = True
) -> dict[str, float]:
    """By task the one of these ridge penalties with the least error on sites left out; of equals the larger.

    `sites` are the sums of each. Sites without a label of a problem take no part in it. RunError with fewer than two
    sites that have labels of a task.
    """
    chosen = {}
    for task in tasks_in(sites[0]):
        errors = left_out_errors(sites, task, penalties, standardise=standardise)
        if not errors:
            raise RunError(
                f"The ridge penalty for task {task!r} is chosen on sites left out, and fewer than two have labels.",
                fix="Use aggregate.ridge_penalty: auto, or give a number.",
            )
        chosen[task] = min(reversed(errors), key=lambda ridge_penalty: errors[ridge_penalty])
    return chosen


def left_out_errors(
    sites: Sequence[Arrays], task: str, penalties: Sequence[float] = RIDGE_PENALTIES, *, standardise: bool = True
) -> Mapping[float, float]:
    """By ridge penalty the squared errors on all cases, each under the head of the other sites, up to sum |y|^2.

    Empty if no problem of the task has two sites with labels.
    """
    own = [problems_of(sums, task)[:2] for sums in sites]
    errors = dict.fromkeys(penalties, 0.0)
    tried = False
    for problem in range(len(own[0][0])):
        pairs = [(grams[problem], crosses[problem]) for grams, crosses in own if grams[problem][-1, -1] > 0]
        if len(pairs) < 2:
            continue
        tried = True
        gram, cross = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        for left_gram, left_cross in pairs:
            for ridge_penalty in penalties:
                weight, bias = ridge_head(gram - left_gram, cross - left_cross, ridge_penalty, standardise=standardise)
                head = np.vstack([weight.T, bias])
                errors[ridge_penalty] += float(np.sum(head * (left_gram @ head)) - 2 * np.sum(head * left_cross))
    return errors if tried else {}
