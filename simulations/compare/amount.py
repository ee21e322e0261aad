"""How much an arm works by gradient, and how many seeds would decide a difference."""

from __future__ import annotations

import math
from typing import Any

from fedgraft.common.study.plan import Gradient, Stage
from fedgraft.common.study.study import Study

_ROUND = 0.005
"""Ratios that differ by less from 1 are the same work."""
_TO_FIND = (1.96 + 0.84) / 1.96
"""An interval must be this much narrower than the difference for it to be found four times out of five."""


def at_hospitals(plan: tuple[Stage, ...]) -> list[tuple[Gradient, int]]:
    """The gradient work of the stages at hospitals with their rounds; what a public source trains is not theirs."""
    return [
        (stage.local, stage.rounds) for stage in plan if isinstance(stage.local, Gradient) and stage.where != "source"
    ]


def amount(study: Study) -> tuple[float, float]:
    """How often a site goes over its training cases, and how many cases it takes in steps that are counted, in all.

    A step ahead of a step (MAML) counts as one more.
    """
    passes = cases = 0.0
    for local, rounds in at_hospitals(study.plan):
        times = rounds * (1 + (local.inner_steps.steps if local.inner_steps is not None else 0))
        passes += times * (local.epochs or 0)
        cases += times * (local.steps or 0) * local.batch_size + rounds * (local.heads_first or 0) * local.batch_size
    return passes, cases


def work_of(study: Study, against: Study) -> dict[str, Any]:
    """An arm's gradient work in words, and how many times that of another arm it is, or None if that cannot be said."""
    (passes, cases), (others, their_cases) = amount(study), amount(against)
    parts = [f"{passes:g} passes over each site's cases"] * (passes > 0) + [f"{cases:,.0f} cases in steps"] * (
        cases > 0
    )
    times = 1.0 if passes + cases + others + their_cases == 0 else None
    if passes * their_cases == cases * others == 0 and (others or their_cases):
        times = (passes or cases) / (others or their_cases)
    words = " and ".join(parts) or "no gradient"
    if times is not None and times and abs(times - 1) > _ROUND:
        words += f", {times:.2g} times as much"
    return {"words": words, "times": times}


def seeds_to_decide(half_width: float | None, seeds: int, difference: float) -> int | None:
    """How many seeds would find a difference of this size four times out of five, from an interval of `seeds` seeds.

    Intervals narrow with the root of the number of seeds. None where one seed, or no interval, tells nothing of it.
    """
    if seeds < 2 or half_width is None or not math.isfinite(half_width):
        return None
    return max(2, math.ceil(seeds * (half_width * _TO_FIND / difference) ** 2))
