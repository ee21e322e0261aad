"""Server optimisers against the papers' update rules, written out on plain numbers."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.common.protocol.instructions import Update
from fedgraft.common.protocol.states import States
from fedgraft.common.study.plan import (
    Gradient,
    Role,
    Stage,
    Tag,
    named,
)
from fedgraft.common.study.stages.aggregates import Mean, ServerOptimiser
from fedgraft.server.aggregation.aggregator import aggregator_for
from fedgraft.server.aggregation.optimiser import Averages

TAGS = {
    "backbone.w": Tag(Role.BODY, 1),
    "backbone.v": Tag(Role.NORM_STATS, 1),
    "backbone.n": Tag(Role.NORM_STATS, 1),
    "heads.cls.weight": Tag(Role.HEAD, 2, "cls"),
}
ROUNDS = 7


def run(aggregate: ServerOptimiser | Mean, memory: States) -> list[dict[str, np.ndarray]]:
    """The state after each round of three sites of 10, 20 and 30 cases that send random changes."""
    rng = np.random.default_rng(5)
    state = {
        "backbone.w": rng.normal(size=(4, 3)),
        "backbone.v": rng.uniform(1, 2, 3),
        "backbone.n": np.array(0),
        "heads.cls.weight": rng.normal(size=(2, 3)),
    }
    states = [state]
    stage = Stage(name="s", local=Gradient(epochs=1), share=named("all"), aggregate=aggregate)
    for _ in range(ROUNDS):
        aggregator = aggregator_for(stage, TAGS, memory)
        for cases in (10.0, 20.0, 30.0):
            sent = {key: old + rng.normal(0.1, 0.3, old.shape) for key, old in state.items() if old.ndim}
            aggregator.add(Update(1, sent | {"backbone.n": np.array(5)}, {"*": cases, "cls": cases}, {}, {}))
        state = state | aggregator.result(state)
        states.append(state)
    return states


def changes(key: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Where an entry starts, and the weighted mean changes of each round, which do not depend on the states."""
    rng = np.random.default_rng(5)
    start = {"backbone.w": rng.normal(size=(4, 3)), "backbone.v": rng.uniform(1, 2, 3)}
    start["heads.cls.weight"] = rng.normal(size=(2, 3))
    found = []
    for _ in range(ROUNDS):
        sums = {name: np.zeros(old.shape) for name, old in start.items()}
        for cases in (10.0, 20.0, 30.0):
            for name, old in start.items():
                sums[name] += cases / 60 * rng.normal(0.1, 0.3, old.shape)
        found.append(sums[key])
    return start[key], found


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "yogi", "adam"])
@pytest.mark.parametrize("key", ["backbone.w", "heads.cls.weight"])
def test_a_rule_is_the_papers(rule: str, key: str) -> None:
    b1, b2, lr, tau = 0.9, 0.95, 0.3, 0.01
    got = run(ServerOptimiser(rule=rule, lr=lr, momentum=b1, beta2=b2, tau=tau), States())
    x, deltas = changes(key)
    m, v = np.zeros_like(x), np.full_like(x, tau**2)
    for number, d in enumerate(deltas, start=1):
        if rule == "sgd":
            m = b1 * m + d
            x = x + lr * m
        else:
            m = b1 * m + (1 - b1) * d
            if rule == "adagrad":
                v = v + d**2
            if rule == "yogi":
                v = v - (1 - b2) * d**2 * np.sign(v - d**2)
            if rule == "adam":
                v = b2 * v + (1 - b2) * d**2
            x = x + lr * m / (np.sqrt(v) + tau)
        np.testing.assert_allclose(got[number][key], x, rtol=1e-12)


def test_without_momentum_at_rate_1_it_is_the_mean() -> None:
    for ours, mean in zip(run(ServerOptimiser(rule="sgd"), States()), run(Mean(), States()), strict=True):
        for key in TAGS:
            np.testing.assert_allclose(ours[key], mean[key], rtol=1e-12)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_running_statistics_and_whole_numbers_are_averaged(rule: str) -> None:
    ours, mean = run(ServerOptimiser(rule=rule, lr=0.1, momentum=0.9), States()), run(Mean(), States())
    for a, b in zip(ours, mean, strict=True):
        np.testing.assert_array_equal(a["backbone.v"], b["backbone.v"])
        assert a["backbone.n"] == b["backbone.n"]


def test_what_is_remembered_is_all_that_the_next_round_needs() -> None:
    states = States()
    run(ServerOptimiser(rule="adam", momentum=0.9), states)
    found = states.get("s", Averages)
    assert found is not None
    assert set(found.m) == set(found.v) == {"backbone.w", "heads.cls.weight"}
    assert all(array.dtype == np.float64 for array in states.arrays().values())
