"""Which of several models a site takes: the one of the lowest loss on its training cases (IFCA, Ghosh et al. 2020).

Training cases, since these are what the model goes on to learn, and there are several times as many of them; validation
cases stay for what they are asked for, such as when to stop. The model is as it would answer, with the entries that the
site keeps for itself in place, but for statistics of norm layers that training moves, which are those of the site's own
images: else they lag behind the weights, so that a model's loss may be tenfold for a round, and a model that all sites
leave in one round never learns again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from fedgraft.client.runtime.visit.admission import Turn
from fedgraft.client.runtime.visit.evaluation import counted, predict
from fedgraft.client.runtime.visit.workplace import Workplace
from fedgraft.client.training.model.errors import Diverged
from fedgraft.common.metrics.plugged import values_of
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.protocol.choosing import choices
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.tasks import Regression


def receive(place: Workplace, turn: Turn) -> None:
    """Take in what came. Raises Refused for what does not fit, and then nothing at the site has changed."""
    place.received.take(turn.instruction, turn.stage, *_offered(place, turn))


def choose(place: Workplace, turn: Turn, local_state: Arrays) -> str:
    """The name of the model that the site takes of those that came, "" where there was no choice.

    Raises Diverged if no model gives finite numbers.
    """
    received, (names, own) = place.received, _offered(place, turn)
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


def _offered(place: Workplace, turn: Turn) -> tuple[Sequence[str], Collection[str]]:
    """The models to choose from, none if there is one alone, and the entries that each has for itself."""
    study, tags = place.study, place.local_model.tags
    names = choices(study, turn.step, tags)
    return names, study.clusters.own.keys(tags) if names and study.clusters is not None else ()


def _loss(place: Workplace, turn: Turn, local_state: Arrays) -> float:
    """The sum over tasks of weight times mean loss; infinite of a model whose answers are no numbers."""
    try:
        sums = counted(place, predict(place, turn, local_state, "train", recalibrated=True))
    except Diverged:
        return math.inf
    return sum(task.weight * _mean(sums[task.name], task) for task in place.study.tasks)


def _mean(sums: TaskSums, task: object) -> float:
    """In nats, or of values the mean square error in deviations; 0 for a task of which no case is known."""
    values = values_of(sums)
    if isinstance(task, Regression):
        return ((values["rmse"] or 0.0) / task.std) ** 2
    return values["loss"] or 0.0
