"""Differences of arms on the same patients, and whether a model is clearly above a shortcut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedgraft.simulations.compare.bootstrap import Replicate, macro, over_replicates
from fedgraft.simulations.compare.measures.measure import Measure
from fedgraft.simulations.compare.measures.shares import Floats

Drawn = dict[Replicate, dict[str, Floats]]
"""By replicate and site the metric: the estimate first, then its bootstrap draws."""


def differences(one: Drawn, other: Drawn) -> dict[Replicate, Floats]:
    """By replicate the difference of macro means, over the sites that both arms have a model for."""
    found = {}
    for replicate in one.keys() & other.keys():
        both = one[replicate].keys() & other[replicate].keys()
        if both:
            mine, theirs = ([own[replicate][site] for site in sorted(both)] for own in (one, other))
            found[replicate] = macro(mine) - macro(theirs)
    return found


def against_control(
    arm: str, controls: Sequence[str], drawn: Mapping[str, Drawn], measure: Measure
) -> dict[str, Any] | None:
    """How an arm stands to the best of the controls: its name, the difference, its interval, whether it is clear.

    `drawn` are those of one number of cases, by arm. None for a control, or where no control was measured. Clear is a
    difference whose 95 % interval is on the right side of 0.
    """
    there = {name: value for name in controls if (value := _value(drawn[name])) is not None}
    if arm in controls or not there:
        return None
    best = max(there, key=lambda name: measure.sign * there[name])
    apart = differences(drawn[arm], drawn[best])
    if not apart:
        return None
    found = over_replicates(apart)
    least = -found.high if measure.lower_is_better else found.low
    return {"control": best, "value": found.value, "low": found.low, "high": found.high, "clear": bool(least > 0)}


def _value(drawn: Drawn) -> float | None:
    """The macro mean over replicates."""
    found = [float(macro(list(sites.values()))[0]) for sites in drawn.values() if sites]
    known = [value for value in found if np.isfinite(value)]
    return float(np.mean(known)) if known else None
