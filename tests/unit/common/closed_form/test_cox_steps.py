"""Steps of Cox's regression end at the largest likelihood, also where a whole step of Newton's method runs away."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.cox import (
    COEFFICIENTS,
    EVENTS,
    CoxSteps,
    HazardRatios,
    hazard_sums,
    partial_likelihood,
    take_step,
)
from fedgraft.common.protocol.states import States
from fedgraft.common.study.plan import Stage, Statistics
from fedgraft.common.study.stages.aggregates import Cox
from fedgraft.common.study.stages.survival import Survival

SPEC = Survival(time="days", event="died", ends=tuple(float(end) for end in range(1, 30)))
STAGE = Stage(name="hazards", local=Statistics(of="hazards", survival=SPEC), aggregate=Cox(), rounds=40)


@pytest.mark.parametrize("seed", [0, 6, 20])
def test_a_step_too_far_is_taken_back(seed: int) -> None:
    """A column with far outliers: from the second step on the likelihood falls, and later ones never come back."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(1, size=(30, 1))
    times = np.ceil(rng.exponential(8 * np.exp(-np.clip(x[:, 0], -3, 3))))
    left = times, (rng.uniform(size=30) < 0.7).astype(int), np.zeros(30, int)
    states = States()
    states.put(STAGE.name, CoxSteps({COEFFICIENTS: np.zeros(1)}, {}))
    for _ in range(40):
        steps = states.get(STAGE.name, CoxSteps)
        assert steps is not None
        take_step(STAGE, hazard_sums(SPEC, left, x, steps.coefficients[COEFFICIENTS], 1), states)
    ended = states.get("", HazardRatios)
    assert ended is not None
    found = ended.coefficients[STAGE.name]
    start, there = (partial_likelihood(hazard_sums(SPEC, left, x, b, 1), b) for b in (np.zeros(1), found))
    assert there[0] >= start[0]
    assert abs(there[1][0]) < 1e-6
    assert ended.facts[STAGE.name][2] < 1e-6


def test_without_an_event_nothing_is_solved() -> None:
    left = np.array([3.0]), np.array([0]), np.array([0])
    sums = hazard_sums(SPEC, left, np.ones((1, 2)), np.zeros(2), 1)
    assert not sums[EVENTS].any()
    with pytest.raises(RunError, match="No site has an event"):
        take_step(STAGE, sums, States())
