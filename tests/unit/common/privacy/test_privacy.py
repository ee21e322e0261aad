"""What privacy costs: against published figures, closed forms, and the laws that a composition must obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.privacy.accountant import (
    ORDERS,
    Event,
    aggregate,
    default_delta,
    epsilon,
    epsilon_of,
    epsilon_prv,
    noise_for,
    rdp,
)

# Patients, batch, epochs, at sigma 1 and delta N^-1.1: epsilon by Renyi divergence, and by PLD and PRV.
FIGURES = [
    (500, 32, 1, 1.63, 1.18),
    (500, 64, 10, 6.36, 5.41),
    (500, 256, 50, 35.0, 32.0),
    (1000, 64, 10, 4.58, 3.92),
    (5000, 32, 1, 0.80, 0.40),
    (5000, 32, 50, 3.10, 2.80),
    (5000, 256, 10, 4.65, 4.06),
    (5000, 256, 50, 10.7, 9.7),
]


@pytest.mark.parametrize(("patients", "batch", "epochs", "by_rdp", "by_prv"), FIGURES)
def test_epsilon_is_that_of_the_published_settings(
    patients: int, batch: int, epochs: int, by_rdp: float, by_prv: float
) -> None:
    events = [Event(1.0, batch / patients, round(epochs * patients / batch))]
    delta = patients**-1.1
    enforced, tight = epsilon(events, delta), epsilon_prv(events, delta)
    assert enforced == pytest.approx(by_rdp, rel=0.03)
    assert tight == pytest.approx(by_prv, rel=0.03)
    assert tight is not None
    assert tight <= enforced


def test_a_plain_gaussian_release_has_the_closed_form() -> None:
    assert rdp([Event(2.0)]) == pytest.approx(np.array(ORDERS) / 8)


def test_restarts_cost_what_one_run_costs() -> None:
    once = Event(1.3, 0.1, 60)
    parts = [Event(1.3, 0.1, 15)] * 4
    assert aggregate(parts) == (once,)
    assert epsilon(parts, 1e-4) == pytest.approx(epsilon([once], 1e-4), abs=1e-9)
    summed = sum((rdp([part]) for part in parts), np.zeros(len(ORDERS)))
    assert epsilon_of(summed, 1e-4) == pytest.approx(epsilon([once], 1e-4), abs=1e-9)


def test_different_jobs_add_up_whatever_their_order() -> None:
    one, other = Event(1.3, 0.1, 60), Event(4.0)
    assert rdp([one, other]) == pytest.approx(rdp([one]) + rdp([other]), rel=1e-12)
    assert rdp([one, other]) == pytest.approx(rdp([other, one]), rel=1e-12)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from([0.6, 0.8, 1.0, 2.0, 5.0]), st.sampled_from([0.01, 0.1, 0.3, 1.0]), st.integers(1, 5000))
def test_more_noise_costs_less_and_more_of_anything_else_costs_more(
    noise_multiplier: float, q: float, steps: int
) -> None:
    cost = epsilon([Event(noise_multiplier, q, steps)], 1e-4)
    assert epsilon([Event(noise_multiplier * 1.5, q, steps)], 1e-4) <= cost
    assert epsilon([Event(noise_multiplier, min(1.0, q * 2), steps)], 1e-4) >= cost
    assert epsilon([Event(noise_multiplier, q, steps + 1)], 1e-4) >= cost
    assert epsilon([Event(noise_multiplier, q, steps)], 1e-5) >= cost
    assert epsilon([Event(noise_multiplier, q, steps), Event(3.0, 0.1, 1)], 1e-4) >= cost


BROKEN = [
    Event(0.0, 0.1, 1),
    Event(-1.0, 0.1, 1),
    Event(math.nan, 0.1, 1),
    Event(math.inf, 0.1, 1),
    Event(1e9, 0.5, 10**9),
    Event(1e-300, 0.5, 1),
    Event(1.0, math.nan, 1),
    Event(1.0, 0.0, 1),
    Event(1.0, 1.5, 1),
    Event(1.0, -0.1, 1),
    Event(1.0, 0.1, 0),
    Event(1.0, 0.1, -5),
    Event(1.0, 0.1, 10**400),
]


@pytest.mark.parametrize("event", BROKEN, ids=lambda event: str(event)[:40])
def test_what_is_no_event_costs_all_there_is(event: Event) -> None:
    assert epsilon([event], 1e-4) > 1e9
    assert epsilon([Event(1.0, 0.1, 10), event], 1e-4) > 1e9
    assert epsilon_prv([event], 1e-4) in (None, math.inf)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_no_delta_no_promise(delta: float) -> None:
    assert epsilon([Event(1.0, 0.1, 10)], delta) == math.inf


def test_nothing_costs_nothing() -> None:
    assert epsilon([], 1e-4) == epsilon_prv([], 1e-4) == 0.0


@pytest.mark.parametrize(("noise_multiplier", "q"), [(50.0, 1e-6), (1e3, 0.5), (0.5, 0.5), (5.0, 0.999)])
def test_no_order_ever_pays_back(noise_multiplier: float, q: float) -> None:
    assert (rdp([Event(noise_multiplier, q, 10**6)]) >= 0).all()


def test_one_broken_order_does_not_hide_the_others() -> None:
    cost = rdp([Event(1.0, 0.1, 10)])
    holed = cost.copy()
    holed[:3] = math.nan
    assert epsilon_of(holed, 1e-4) == pytest.approx(epsilon_of(cost, 1e-4))
    assert epsilon_of(np.full(len(ORDERS), math.nan), 1e-4) == math.inf
    assert epsilon_of(cost[:-1], 1e-4) == math.inf


def test_the_tight_figure_is_left_out_where_it_would_take_minutes() -> None:
    assert epsilon_prv([Event(2 + number / 10, 0.01, 5) for number in range(11)], 1e-4) is None
    assert epsilon_prv([Event(0.1, 0.5, 100)], 1e-4) is None


@pytest.mark.parametrize(("patients", "delta"), [(1, 1e-3), (100, 1e-3), (5000, 5000**-1.1)])
def test_delta_is_below_one_in_the_number_of_patients(patients: int, delta: float) -> None:
    assert default_delta(patients) == pytest.approx(delta)


def test_delta_needs_patients() -> None:
    with pytest.raises(ValueError, match="at least one"):
        default_delta(0)


@pytest.mark.parametrize(("limit", "by_prv"), [(1.0, 4.22), (3.0, 1.83), (8.0, 1.00)])
def test_the_noise_for_a_limit_fits_and_is_hardly_more_than_needed(limit: float, by_prv: float) -> None:
    q, steps, delta = 64 / 500, 156, 500**-1.1
    noise_multiplier = noise_for(limit, delta, q, steps)
    assert by_prv <= noise_multiplier <= by_prv * 1.2
    assert epsilon([Event(noise_multiplier, q, steps)], delta) <= limit
    assert epsilon([Event(noise_multiplier * 0.997, q, steps)], delta) > limit


def test_the_noise_for_a_limit_knows_what_was_spent() -> None:
    spent = [Event(2.1, 0.1, 100)]
    noise_multiplier = noise_for(3.0, 1e-3, 0.1, 100, spent)
    assert noise_multiplier > noise_for(3.0, 1e-3, 0.1, 100)
    assert epsilon([*spent, Event(noise_multiplier, 0.1, 100)], 1e-3) <= 3.0
    assert noise_for(1.0, 1e-3, 0.1, 100, [Event(0.5, 0.1, 100)]) == math.inf
    assert noise_for(math.nan, 1e-3, 0.1, 100) == math.inf


def test_a_generous_limit_needs_little_noise() -> None:
    assert noise_for(100.0, 1e-3, 1.0, 1) < 0.2
