"""Every metric that arms can be compared by, where each case counts so many times, as a bootstrap draws it."""

from __future__ import annotations

from typing import assert_never

import numpy as np

from fedgraft.common.metrics.plugged import plugged_metric
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task
from fedgraft.simulations.compare.measures.answers import Answers
from fedgraft.simulations.compare.measures.of_classes import OF_CLASSES
from fedgraft.simulations.compare.measures.of_labels import OF_LABELS
from fedgraft.simulations.compare.measures.of_masks import OF_MASKS
from fedgraft.simulations.compare.measures.of_values import OF_VALUES
from fedgraft.simulations.compare.measures.shares import Floats, Metrics


def own_metrics(task: AnyTask) -> Metrics:
    """fedgraft's own metrics of a task's kind that can be drawn anew, by name."""
    match task:
        case Task():
            return OF_CLASSES
        case Multilabel():
            return OF_LABELS
        case Regression():
            return OF_VALUES
        case Segmentation():
            return OF_MASKS
    assert_never(task)


def under_weights(name: str, task: AnyTask, answers: Answers, weights: Floats) -> Floats:
    """The metric for each row of case weights (rows, N), (rows,); NaN where it is undefined.

    Whole weights give what as many copies of each case would, by `fedgraft.common.metrics`. InputError for a name that
    neither fedgraft nor a plug-in has.
    """
    if not len(answers.targets):
        return np.full(len(weights), np.nan)
    found = own_metrics(task).get(name)
    return found(answers, weights) if found is not None else _plugged(name, answers, weights)


def value_of(name: str, task: AnyTask, answers: Answers) -> float | None:
    """The metric with each case once; None where it is undefined."""
    found = float(under_weights(name, task, answers, np.ones((1, len(answers.targets))))[0])
    return found if np.isfinite(found) else None


def _plugged(name: str, answers: Answers, weights: Floats) -> Floats:
    one = plugged_metric(name)
    sums = weights @ one.cases(answers.outputs, answers.targets)
    values = [one.value(own) if weight > 0 else None for own, weight in zip(sums, weights.sum(axis=1), strict=True)]
    return np.array([np.nan if value is None else value for value in values])
