"""Whether the sums of one site can be solved at all: tried on them alone, before they are added to those of others.

Numbers can be finite and still be sums of no cases: a matrix of second moments with a negative direction has no
solution, and would take that of all sites with it. Sums of sums that each can be solved can be solved too: their
centred moments add up, and what is between sites only adds a matrix without negative directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fedgraft.common.base.errors import FedgraftError
from fedgraft.common.closed_form.closed_form import tasks_in
from fedgraft.common.closed_form.penalty import penalties_for
from fedgraft.common.protocol.instructions import NOISE, Arrays, Update
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.protocol.states import States
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.aggregates import Newton, Ridge
from fedgraft.server.aggregation.aggregator import HeadAggregator, LogisticAggregator, aggregator_for


def solvable(update: Update, stage: Stage, tags: Tags, state: Arrays) -> bool:
    """Whether the stage's aggregation, given these sums alone, ends with finite numbers."""
    with np.errstate(all="ignore"):
        return all(_one(part, _decided(stage), tags, state) for part in _by_task(update, stage, tags))


def _one(update: Update, stage: Stage, tags: Tags, state: Arrays) -> bool:
    states = States()
    aggregator = aggregator_for(stage, tags, states)
    try:
        aggregator.add(update)
        found = aggregator.result(state)
    except (FedgraftError, LookupError):
        return True  # too little to say anything, which others or the model make up for: names were looked at before
    except (ArithmeticError, ValueError):  # LinAlgError is one of these
        return False
    return all(np.isfinite(array).all() for array in (*found.values(), *states.arrays().values()))


def _by_task(update: Update, stage: Stage, tags: Tags) -> Iterator[Update]:
    """Heads are solved task by task, and one without a label must not hide the next."""
    if not isinstance(aggregator_for(stage, tags), HeadAggregator | LogisticAggregator):
        yield update
        return
    for task in tasks_in(update.tensors):
        own = {key: array for key, array in update.tensors.items() if key.startswith(f"{task}/") or key == NOISE}
        yield replace(update, tensors=own)


def _decided(stage: Stage) -> Stage:
    """The stage with the least penalty of those that are chosen from: what it solves, all do."""
    aggregate = stage.aggregate
    if not isinstance(aggregate, Ridge | Newton) or not isinstance(aggregate.ridge_penalty, str):
        return stage
    decided = aggregate.model_copy(update={"ridge_penalty": min(penalties_for(stage))})
    return stage.model_copy(update={"aggregate": decided})
