"""How a stage ends: when it stops early, and the average that it may end with.

All that lasts from round to round is in the stage's memory, and so in the checkpoint.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import numpy as np

from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.stopping import EarlyStopping, WeightAveraging
from fedgraft.server.rounds.scores import Scores

Memory = MutableMapping[str, np.ndarray]
_BEST, _SEEN, _AVERAGE, _COUNT = "best/", "best_of_waited", "average/", "averaged"


def stopped(stage: Stage, number: int, scores: Scores, state: Arrays, memory: Memory) -> int | None:
    """The round whose model the stage goes back to, if it ends now; None to go on.

    `scores` are of `state`, the model after round `number` - 1.
    """
    value = None if stage.early_stopping is None else _figure(stage.early_stopping, scores)
    if stage.early_stopping is None or value is None:
        return None
    best, of, waited = memory.get(_SEEN, np.array([-np.inf, 0.0, 0.0]))
    if value > best + stage.early_stopping.least:
        memory[_SEEN] = np.array([value, number - 1, 0.0])
        memory.update({_BEST + key: array for key, array in state.items()})
        return None
    memory[_SEEN] = np.array([best, of, waited + 1])
    return int(of) if waited + 1 >= stage.early_stopping.patience else None


def undecided(stage: Stage, scores: Scores) -> bool:
    """Whether the stage may end early, and what came back of this round is too little to judge it by."""
    return stage.early_stopping is not None and _figure(stage.early_stopping, scores) is None


def best(memory: Memory) -> dict[str, np.ndarray]:
    """The state of the round with the best figure in this stage so far; empty before the first."""
    return {key.removeprefix(_BEST): array for key, array in memory.items() if key.startswith(_BEST)}


def averaged(stage: Stage, number: int, aggregated: Arrays, memory: Memory) -> dict[str, np.ndarray]:
    """Take in what round `number` has aggregated; at the end of the stage their average, else `aggregated`."""
    rule = stage.weight_averaging
    if rule is None or (rule.rule == "swa" and number <= stage.rounds - max(1, round(rule.over * stage.rounds))):
        return dict(aggregated)
    count = memory.get(_COUNT, np.zeros(()))
    keep = count / (count + 1) if rule.rule == "swa" else _kept(rule, float(count))
    for key, array in aggregated.items():
        if array.dtype.kind == "f":
            old = memory.get(_AVERAGE + key, np.zeros(array.shape))
            memory[_AVERAGE + key] = np.asarray(keep * old + (1 - keep) * array)
    memory[_COUNT] = np.asarray(count + 1)
    if number < stage.rounds:
        return dict(aggregated)
    return {key: memory.get(_AVERAGE + key, array).astype(array.dtype) for key, array in aggregated.items()}


def _kept(rule: WeightAveraging, count: float) -> float:
    """How much the average keeps of itself: nothing at first, so that no zeros are in it."""
    return rule.decay if count else 0.0


def _figure(stop: EarlyStopping, scores: Scores) -> float | None:
    """What the stage is judged by: the `summary` of its metric, over the tasks that have one."""
    found = [values["summary"].get(stop.metric) for values in scores.values().values()]
    known = [float(value) for value in found if value is not None]
    return float(np.mean(known)) if known else None
