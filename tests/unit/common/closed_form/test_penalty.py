"""The ridge penalty that is chosen from totals: against leave-one-out by hand, and with few and many features."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.common.closed_form.closed_form import automatic_penalties, heads_from_sums, ridge_head
from fedgraft.common.closed_form.penalty import RIDGE_PENALTIES, cross_validated
from fedgraft.common.protocol.instructions import NOISE
from fedgraft.common.study.stages.aggregates import Ridge


def cases(number: int, dim: int, seed: int = 0, informative: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Features with a few common causes, as a backbone's, and labels that some of these decide."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(number, informative))
    features = causes @ np.random.default_rng(99).normal(size=(informative, dim)) + 2 * rng.normal(size=(number, dim))
    return 3 + features, (causes[:, 0] + 0.7 * rng.normal(size=number) > 0).astype(int)


def sums(x: np.ndarray, y: np.ndarray, classes: int = 2) -> dict[str, np.ndarray]:
    z = np.hstack([x, np.ones((len(x), 1))])
    return {"cls/gram": z.T @ z, "cls/cross": z.T @ np.eye(classes)[y]}


def naive_gcv(x: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """From the hat matrix of all cases, as nobody could have it in a federation."""
    n = len(x)
    scaled = (x - x.mean(0)) / x.std(0)
    hat = scaled @ np.linalg.solve(scaled.T @ scaled + n * penalty * np.eye(x.shape[1]), scaled.T) + 1 / n
    residual = np.eye(2)[y] - hat @ np.eye(2)[y]
    return float(n * (residual**2).sum() / (n - np.trace(hat)) ** 2)


@pytest.mark.parametrize(("number", "dim"), [(60, 5), (150, 40), (40, 90)])
def test_the_choice_is_that_of_the_hat_matrix_of_all_cases(number: int, dim: int) -> None:
    x, y = cases(number, dim)
    parts = [sums(x[a : a + 17], y[a : a + 17]) for a in range(0, number, 17)]
    total = {key: sum(part[key] for part in parts) for key in parts[0]}
    wanted = min(reversed(RIDGE_PENALTIES), key=lambda penalty: naive_gcv(x, y, penalty))
    assert automatic_penalties(total) == {"cls": wanted}


def test_more_features_shrink_more_and_rank_better_than_a_fixed_penalty() -> None:
    """What a fixed .1 per case loses with 1,280 features, here with 600: judged on cases of their own."""
    x, y = cases(120, 600)
    few, many = (automatic_penalties(sums(x[:, :dim], y))["cls"] for dim in (12, 600))
    assert few < 0.5 < many
    fresh, truth = cases(2000, 600, seed=1)
    right = {}
    for penalty in (0.1, many):
        weight, bias = ridge_head(*sums(x, y).values(), penalty)
        right[penalty] = float(((fresh @ weight.T + bias).argmax(1) == truth).mean())
    assert right[many] > right[0.1] + 0.01


def test_every_label_of_several_counts_and_one_without_cases_does_not() -> None:
    x, y = cases(80, 10)
    z = np.hstack([x, np.ones((80, 1))])
    signs = 2.0 * y[:, None] - 1
    one = cross_validated([z.T @ z], [z.T @ signs], classes=False)
    both = cross_validated([z.T @ z, np.zeros((11, 11))], [z.T @ signs, np.zeros((11, 1))], classes=False)
    assert one == both == automatic_penalties(sums(x, y))["cls"]


def test_noised_sums_and_values_get_features_per_case() -> None:
    x, y = cases(200, 30)
    noised = sums(x, y) | {NOISE: np.array([4.0])}
    assert automatic_penalties(noised)["cls"] == pytest.approx(30 / 200)
    found = sums(x, y)
    value = {"mm/gram": found["cls/gram"], "mm/value": found["cls/cross"][:, :1]}
    assert automatic_penalties(value)["mm"] == pytest.approx(30 / 200)


def test_it_is_the_default_and_the_heads_are_those_of_the_chosen_number() -> None:
    x, y = cases(90, 200)
    total = sums(x, y)
    state = {"heads.cls.weight": np.zeros((2, 200)), "heads.cls.bias": np.zeros(2)}
    plain = heads_from_sums(total, Ridge(), state)
    named = heads_from_sums(total, Ridge(ridge_penalty=automatic_penalties(total)["cls"]), state)
    assert all(np.array_equal(plain[key], named[key]) for key in state)


def test_features_without_spread_and_a_single_class_are_no_reason_to_fail() -> None:
    flat = np.hstack([np.full((20, 3), 7.0), np.arange(20.0)[:, None]])
    for x, y in ((flat, np.arange(20) % 2), (np.full((6, 4), 1.0), np.arange(6) % 2), (flat, np.zeros(20, int))):
        assert automatic_penalties(sums(x, y))["cls"] in RIDGE_PENALTIES
