"""Which of several models a site takes: the one of the lowest loss on its training cases (IFCA, Ghosh et al. 2020).

Training cases, since these are what the model goes on to learn, and there are several times as many of them; validation
cases stay for what they are asked for, such as when to stop. The model is as it would answer: with the entries that the
site keeps for itself in place.
"""

from __future__ import annotations

import math

from fedgraft.client.runtime.visit.admission import Turn
from fedgraft.client.runtime.visit.evaluation import counted, predict
from fedgraft.client.runtime.visit.workplace import Workplace
from fedgraft.client.training.model.errors import Diverged
from fedgraft.common.metrics.plugged import values_of
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.protocol.choosing import choices
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.tasks import Regression


def receive(place: Workplace, turn: Turn, local_state: Arrays) -> str:
    """Take in what came; the name of the model that the site has taken, "" where there was no choice.

    Raises Refused for what does not fit, and Diverged if no model gives finite numbers.
    """
    study, tags, received = place.study, place.local_model.tags, place.received
    names = choices(study, turn.step, tags)
    own = study.clusters.own.keys(tags) if names and study.clusters is not None else ()
    received.take(turn.instruction, turn.stage, names, own)
    losses = {}
    for name in names:
        received.choose(name, own)
        losses[name] = _loss(place, turn, local_state)
    if not names:
        return ""
    best = min(names, key=lambda name: losses[name])
    if math.isinf(losses[best]):
        raise Diverged
    received.choose(best, own)
    return best


def _loss(place: Workplace, turn: Turn, local_state: Arrays) -> float:
    """The sum over tasks of weight times mean loss; infinite of a model whose answers are no numbers."""
    try:
        sums = counted(place, predict(place, turn, local_state, "train"))
    except Diverged:
        return math.inf
    return sum(task.weight * _mean(sums[task.name], task) for task in place.study.tasks)


def _mean(sums: TaskSums, task: object) -> float:
    """In nats, or of values the mean square error in deviations; 0 for a task of which no case is known."""
    values = values_of(sums)
    if isinstance(task, Regression):
        return ((values["rmse"] or 0.0) / task.std) ** 2
    return values["loss"] or 0.0
