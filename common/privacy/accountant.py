"""What privacy costs: noised releases as values, and their composition into one (epsilon, delta).

Enforced is Renyi DP (Mironov 2017, "Renyi differential privacy"): it is additive, fast, and never below the truth.
Whatever cannot be computed costs infinity, so that a fault in the arithmetic can only exhaust a budget.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

ORDERS: tuple[float, ...] = (
    *(round(1 + step / 10, 1) for step in range(1, 41)),
    *(round(5 + step / 5, 1) for step in range(1, 31)),
    *(12.0, 13.0, 14.0, 15.0, 16.0, 18.0, 20.0, 22.0, 24.0, 28.0, 32.0, 40.0, 48.0, 56.0, 64.0),
    *(80.0, 96.0, 128.0, 192.0, 256.0, 512.0),
)
"""Renyi orders of all sums here. Ledgers store one number per order: another tuple is another ledger format."""

_PRV_EVENTS = 10
"""The tight accountant needs 3 s for 10 different events, half a minute for 40, and does not finish for 100."""
_PRV_EPSILON = 50.0
"""Above this its grid takes minutes and gigabytes, and the figure promises nothing anyway."""
_NOISE_TOLERANCE = 1e-3
_NOISE_MIN, _NOISE_MAX = 1e-3, 1e5
_STEPS_MAX = 10**9

Unit = Literal["patient", "image"]


@dataclass(frozen=True)
class Event:
    """One release: `steps` times Gaussian noise on a sum over a Poisson sample.

    `noise_multiplier` is the noise's deviation over the largest contribution of one unit, `sample_rate` the chance of
    each unit to be in a sample. A rate of 1 with one step is a plain Gaussian release.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1


@dataclass(frozen=True)
class Spend:
    """What a cohort has paid, with all that is needed to read the figure."""

    epsilon: float
    delta: float
    unit: Unit
    relation: Literal["add/remove"] = "add/remove"
    accountant: Literal["rdp", "prv"] = "rdp"
    steps: int = 0


def default_delta(patients: int) -> float:
    """min(1e-3, N^-1.1): below one in N, so that publishing one whole patient is not within the promise.

    ValueError without patients.
    """
    if patients < 1:
        raise ValueError("a delta needs at least one patient")
    return float(min(1e-3, patients**-1.1))


def aggregate(events: Sequence[Event]) -> tuple[Event, ...]:
    """The same events with equal (noise_multiplier, sample_rate) counted together, in order of first use."""
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        steps[event.noise_multiplier, event.sample_rate] = (
            steps.get((event.noise_multiplier, event.sample_rate), 0) + event.steps
        )
    return tuple(Event(noise_multiplier, q, count) for (noise_multiplier, q), count in steps.items())


def rdp(events: Sequence[Event]) -> np.ndarray:
    """Renyi divergence of all events together at each of `ORDERS`; infinity for what is no valid event."""
    if not all(_valid(event) for event in events):
        return np.full(len(ORDERS), math.inf)
    total = np.zeros(len(ORDERS))
    for event in aggregate(events):
        total = total + event.steps * np.array(_per_step(float(event.noise_multiplier), float(event.sample_rate)))
    return total


def epsilon(events: Sequence[Event], delta: float) -> float:
    """The enforced epsilon of all events together; infinity if it cannot be computed."""
    return epsilon_of(rdp(events), delta)


def epsilon_of(divergence: np.ndarray, delta: float) -> float:
    """Epsilon at `delta` of a Renyi divergence at `ORDERS`; infinity if it cannot be computed.

    Balle et al. 2020, "Hypothesis testing interpretations and Renyi differential privacy", theorem 21.
    """
    if not 0 < delta < 1 or len(divergence) != len(ORDERS):
        return math.inf
    if not divergence.any():
        return 0.0
    from opacus.accountants.analysis.rdp import get_privacy_spent  # seconds to import, and only few commands need it

    sound = np.where(np.isfinite(divergence) & (divergence >= 0), divergence, math.inf)
    with warnings.catch_warnings():  # it says which order was best, which is no news
        warnings.simplefilter("ignore")
        value = float(get_privacy_spent(orders=list(ORDERS), rdp=sound, delta=delta)[0])
    return max(value, 0.0) if math.isfinite(value) else math.inf


def epsilon_prv(events: Sequence[Event], delta: float) -> float | None:
    """The tight epsilon, to be reported and never enforced; infinity if it cannot be computed.

    None where it would take minutes: more than 10 different events, or an enforced epsilon above 50.
    Gopi et al. 2021, "Numerical composition of differential privacy".
    """
    aggregated = aggregate(events)
    if not aggregated:
        return 0.0
    if len(aggregated) > _PRV_EVENTS:
        return None
    bound = epsilon(aggregated, delta)
    if not math.isfinite(bound):
        return math.inf
    if bound > _PRV_EPSILON:
        return None
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in aggregated]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(accountant.get_epsilon(delta))
    except Exception:  # it raises whatever its arithmetic meets; the bound of above is then all that is known
        return math.inf
    return value if math.isfinite(value) else math.inf


def noise_for(limit: float, delta: float, q: float, steps: int, spent: Sequence[Event] = ()) -> float:
    """The least noise multiplier, to 0.1 %, with which `steps` more keep epsilon within `limit` after what was `spent`.

    Infinity if no noise is enough.
    """
    before = rdp(spent)

    def fits(noise_multiplier: float) -> bool:
        return epsilon_of(before + rdp([Event(noise_multiplier, q, steps)]), delta) <= limit

    low, high = 0.5, 1.0
    while not fits(high):
        low, high = high, high * 2
        if high > _NOISE_MAX:
            return math.inf
    while low > _NOISE_MIN and fits(low):
        low, high = low / 2, low
    while high > low * (1 + _NOISE_TOLERANCE):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _valid(event: Event) -> bool:
    whole = isinstance(event.steps, int) and not isinstance(event.steps, bool)
    # At 1e9 the divergence is below the rounding error of the formulas, and would then count as nothing.
    return (
        whole
        and 1 <= event.steps <= _STEPS_MAX
        and 0 < event.noise_multiplier <= _NOISE_MAX
        and 0 < event.sample_rate <= 1
    )


@lru_cache(maxsize=4096)
def _per_step(noise_multiplier: float, q: float) -> tuple[float, ...]:
    """Divergence of one step at each order (Mironov et al. 2019, "Renyi DP of the sampled Gaussian mechanism")."""
    return tuple(_at_order(noise_multiplier, q, order) for order in ORDERS)


def _at_order(noise_multiplier: float, q: float, order: float) -> float:
    from opacus.accountants.analysis.rdp import compute_rdp

    try:
        value = float(compute_rdp(q=q, noise_multiplier=noise_multiplier, steps=1, orders=order))
    except Exception:  # the series of a broken order may raise anything; the other orders still bound epsilon
        return math.inf
    # Cancellation can give tiny negative values; times a million steps they would pay budget back.
    return max(value, 0.0) if math.isfinite(value) else math.inf
