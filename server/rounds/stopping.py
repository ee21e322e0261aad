"""How a stage ends: when it stops early, and the average that it may end with.

All that lasts from round to round is a state of the coordinator's, and so in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.states import State, States
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.stopping import EarlyStopping, WeightAveraging
from fedgraft.server.rounds.scores import Scores


@dataclass(frozen=True)
class BestSoFar(State):
    """The best model of the stage by its figure, and how long it has been that."""

    entries: Arrays
    seen: Arrays
    """The `figure`, the `round` whose model had it, and for how many evaluations the stage has `waited` since."""

    owner: ClassVar[str] = "early_stopping"


@dataclass(frozen=True)
class Averaged(State):
    """The average over the rounds so far, by entry, and how many rounds are in it."""

    entries: Arrays
    count: Arrays

    owner: ClassVar[str] = "weight_averaging"


_FIRST = {"figure": np.array(-np.inf), "round": np.array(0.0), "waited": np.array(0.0)}


def stopped(stage: Stage, number: int, scores: Scores, state: Arrays, states: States) -> int | None:
    """The round whose model the stage goes back to, if it ends now; None to go on.

    `scores` are of `state`, the model after round `number` - 1.
    """
    value = None if stage.early_stopping is None else _figure(stage.early_stopping, scores)
    if stage.early_stopping is None or value is None:
        return None
    before = states.get(stage.name, BestSoFar) or BestSoFar({}, _FIRST)
    if value > before.seen["figure"] + stage.early_stopping.least:
        seen = {"figure": np.array(value), "round": np.array(number - 1.0), "waited": np.array(0.0)}
        states.put(stage.name, BestSoFar(dict(state), seen))
        return None
    waited = before.seen["waited"] + 1
    states.put(stage.name, BestSoFar(before.entries, {**before.seen, "waited": np.array(waited)}))
    return int(before.seen["round"]) if waited >= stage.early_stopping.patience else None


def undecided(stage: Stage, scores: Scores) -> bool:
    """Whether the stage may end early, and what came back of this round is too little to judge it by."""
    return stage.early_stopping is not None and _figure(stage.early_stopping, scores) is None


def best(stage: Stage, states: States) -> dict[str, np.ndarray]:
    """The state of the round with the best figure in this stage so far; empty before the first."""
    found = states.get(stage.name, BestSoFar)
    return {} if found is None else dict(found.entries)


def averaged(stage: Stage, number: int, aggregated: Arrays, states: States) -> dict[str, np.ndarray]:
    """Take in what round `number` has aggregated; at the end of the stage their average, else `aggregated`."""
    rule = stage.weight_averaging
    if rule is None or (rule.rule == "swa" and number <= stage.rounds - max(1, round(rule.over * stage.rounds))):
        return dict(aggregated)
    before = states.get(stage.name, Averaged) or Averaged({}, {"rounds": np.zeros(())})
    count, entries = before.count["rounds"], dict(before.entries)
    keep = count / (count + 1) if rule.rule == "swa" else _kept(rule, float(count))
    for key, array in aggregated.items():
        if array.dtype.kind == "f":
            old = entries.get(key, np.zeros(array.shape))
            entries[key] = np.asarray(keep * old + (1 - keep) * array)
    states.put(stage.name, Averaged(entries, {"rounds": np.asarray(count + 1)}))
    if number < stage.rounds:
        return dict(aggregated)
    return {key: entries.get(key, array).astype(array.dtype) for key, array in aggregated.items()}


def _kept(rule: WeightAveraging, count: float) -> float:
    """How much the average keeps of itself: nothing at first, so that no zeros are in it."""
    return rule.decay if count else 0.0


def _figure(stop: EarlyStopping, scores: Scores) -> float | None:
    """What the stage is judged by, larger where it is better: its metric's `summary`, over the tasks that have one."""
    return scores.goodness(stop.metric)
