"""What each site gained by joining: its figure with an arm's model, less that of the model it trains alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedgraft.simulations.compare.bootstrap import Replicate, holm, over_replicates, verdict
from fedgraft.simulations.compare.measures.measure import Measure
from fedgraft.simulations.compare.measures.shares import Floats
from fedgraft.simulations.compare.question import Question

Drawn = Mapping[Replicate, Mapping[str, Floats]]


def alone_in(question: Question) -> str | None:
    """The arm in which each site trains alone, which no control is; None if the question has none."""
    alone = (arm for arm in question.arms if arm.who == "alone" and arm.labels == "known" and not arm.control)
    return next((arm.name for arm in alone), None)


def gains(measure: Measure, mine: Drawn, alone: Drawn) -> dict[str, dict[str, Any]] | None:
    """By site the gain of an arm over training alone, with its 95 % interval over patients and seeds, and a verdict.

    p is adjusted over the sites (Holm): with many of them one would else seem to gain or lose by chance. None where
    no site has both. Sites whose cases are too few to say are left out.
    """
    both = sorted(mine.keys() & alone.keys())
    sites = sorted({site for replicate in both for site in mine[replicate].keys() & alone[replicate].keys()})
    apart = {
        site: {one: mine[one][site] - alone[one][site] for one in both if site in mine[one] and site in alone[one]}
        for site in sites
    }
    known = {site: own for site, own in apart.items() if any(np.isfinite(values[0]) for values in own.values())}
    found = {site: over_replicates(own) for site, own in known.items()}
    adjusted = holm({site: interval.p for site, interval in found.items()})
    return {
        site: {
            "value": interval.value,
            "low": _number(interval.low),
            "high": _number(interval.high),
            "holm": _number(adjusted[site]),
            "verdict": verdict(interval, adjusted[site], measure, seeds=len({seed for seed, _ in known[site]})),
        }
        for site, interval in found.items()
    } or None


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
