"""Kaplan-Meier curves from sums: every site counts who left in which bin of time, by the event or without it.

What is sent is (curves, 2, bins + 1) counts: events, and ends of follow-up without one; the last bin is all that is
beyond the last end. The numbers at risk are the sums of all that leave later. So each patient is in one count alone,
which is the least that noise has to hide: sent as they are, the numbers at risk of all bins up to a patient's time
would change with that patient, by the root of (bins + 1) together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.protocol.instructions import NOISE, Arrays
from fedgraft.common.protocol.states import State, States
from fedgraft.common.study.plan import Stage, Statistics
from fedgraft.common.study.stages.survival import Survival
from fedgraft.common.study.study import Study

EXITS = "exits"
"""The name of the counts."""
_Z = 1.959963984540054

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class SurvivalCounts(State):
    """What all sites of a stage counted, by stage; and by stage the variance of the noise in it, where there is any."""

    exits: Arrays
    noise: Arrays

    owner: ClassVar[str] = "survival"
    lasts: ClassVar[bool] = True


def shape_of(spec: Survival, study: Study) -> tuple[int, int, int]:
    """That of the counts."""
    return len(spec.groups(study.tasks_by_name)), 2, len(spec.ends) + 1


def exits(spec: Survival, times: np.ndarray, events: np.ndarray, groups: np.ndarray, curves: int) -> Counts:
    """The counts of patients; times (n,) in the unit, events (n,) 0 or 1, groups (n,) positions of curves."""
    ends = np.asarray(spec.ends, np.float64).astype(times.dtype)  # so that a time that is an end stays in its bin
    found = np.zeros((curves, 2, len(ends) + 1))
    np.add.at(found, (groups, 1 - events, np.searchsorted(ends, times)), 1.0)
    return found


def keep_counts(stage: str, sums: Arrays, states: States) -> None:
    """Put what a stage's sites counted beside what stages before it did."""
    known = states.get("", SurvivalCounts) or SurvivalCounts({}, {})
    noise = {stage: sums[NOISE]} if NOISE in sums else {}
    states.put("", SurvivalCounts({**known.exits, stage: sums[EXITS]}, {**known.noise, **noise}))


def curve(counts: Counts, *, noised: bool) -> dict[str, Any]:
    """One curve from its counts (2, bins + 1): by bin `at_risk`, `events`, `survival`, its error and 95 % interval.

    S = prod (1 - d/n) over the bins so far (Kaplan and Meier 1958), with Greenwood's standard error S sqrt(sum d / (n
    (n - d))), and the interval from it on the scale of log(-log S), so that it stays within 0 and 1 (Kalbfleisch and
    Prentice 1980). None where nobody is at risk, and of errors and intervals where S is 0 or 1. Counts with noise are
    brought to what counts can be, which is post-processing; Greenwood's error knows nothing of noise, so there is none.
    """
    at_risk = np.cumsum(counts.sum(axis=0)[::-1])[::-1][:-1]
    events = counts[0, :-1]
    if noised:
        at_risk = np.maximum(at_risk, 0.0)
        events = np.clip(events, 0.0, at_risk)
    left, spread = 1.0, 0.0
    nothing: list[float | None] = [None] * len(events)
    survival, error, low, high = (list(nothing) for _ in range(4))
    for at, (n, d) in enumerate(zip(at_risk.tolist(), events.tolist(), strict=True)):
        if n <= 0:
            break
        left *= (n - d) / n
        survival[at] = left
        if noised:
            continue
        spread = spread + d / (n * (n - d)) if n > d else np.inf
        if 0 < left < 1:
            error[at] = left * float(np.sqrt(spread))
            width = _Z * float(np.sqrt(spread)) / np.log(left)
            low[at], high[at] = (float(left ** np.exp(side * width)) for side in (-1, 1))
    return {
        "at_risk": at_risk.tolist(),
        "events": events.tolist(),
        "survival": survival,
        "error": error,
        "low": low,
        "high": high,
    }


def curves(study: Study, states: States) -> list[dict[str, Any]]:
    """The Kaplan-Meier curves of a run, one row for each stage that counted, as `result.json` has them."""
    known = states.get("", SurvivalCounts)
    found = []
    for stage in study.plan:
        spec = survival_of(stage)
        if known is None or spec is None or stage.name not in known.exits:
            continue
        counts, tasks = known.exits[stage.name], study.tasks_by_name
        noised = stage.name in known.noise
        named = zip(spec.groups(tasks), counts, strict=True)
        found.append(
            {
                "stage": stage.name,
                "event": f"{spec.event}: {tasks[spec.event].names[1]}",
                "by": spec.by,
                "unit": tasks[spec.time].names[0],
                "ends": list(spec.ends),
                "noised": noised,
                "curves": [
                    {"name": name, "median": None} | _with_median(curve(own, noised=noised), spec.ends)
                    for name, own in named
                ],
            }
        )
    return found


def _with_median(drawn: Mapping[str, Any], ends: tuple[float, ...]) -> dict[str, Any]:
    """The curve with the first end at which at most half are left; None if it stays above."""
    reached = (end for end, left in zip(ends, drawn["survival"], strict=True) if left is not None and left <= 0.5)
    return {**drawn, "median": next(reached, None)}


def survival_of(stage: Stage) -> Survival | None:
    """Whose time to an event the stage's sites count; None if they do not."""
    return stage.local.survival if isinstance(stage.local, Statistics) else None
