"""Temperatures from sums are those of the pooled cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax

from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.temperature import (
    TEMPERATURES,
    best,
    class_losses,
    label_losses,
    tempered,
)


def cases(seed: int, count: int, sharp: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits `sharp` times as far apart as they should be, and classes drawn from what they should be."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(count, 3)) * 1.5
    target = np.array([rng.choice(3, p=row) for row in softmax(honest, axis=1)])
    return (honest * sharp).astype(np.float32), target


def by_hand(logits: np.ndarray, target: np.ndarray, temperature: float) -> float:
    """The summed cross-entropy, in the plainest way."""
    shares = softmax(logits.astype(np.float64) / temperature, axis=1)
    return float(-np.log(shares[np.arange(len(target)), target]).sum())


def test_losses_are_those_worked_out_by_hand_and_leave_out_what_is_not_known() -> None:
    logits, target = cases(0, 40, 2.0)
    hidden = np.concatenate([target, [-1, -1]])
    found = class_losses(np.vstack([logits, logits[:2]]), hidden)
    np.testing.assert_allclose(found, [by_hand(logits, target, t) for t in TEMPERATURES], rtol=1e-12)


def test_losses_of_labels_are_those_worked_out_by_hand() -> None:
    rng = np.random.default_rng(1)
    logits, target = rng.normal(size=(30, 2)) * 2, rng.integers(0, 2, (30, 2)).astype(np.float64)
    target[0, 1] = np.nan
    known = ~np.isnan(target)
    for at in (0, 40, 80):
        scaled, truth = (logits / TEMPERATURES[at])[known], target[known]
        plain = -np.log(np.where(truth == 1, expit(scaled), expit(-scaled))).sum()
        assert label_losses(logits, target)[at] == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("sharp", [0.4, 1.0, 3.0])
def test_sites_together_choose_what_the_pooled_cases_would(sharp: float) -> None:
    sites = [cases(seed, count, sharp) for seed, count in enumerate((7, 300, 500, 40))]
    total = np.sum([class_losses(*site) for site in sites], axis=0)
    pooled = np.vstack([site[0] for site in sites]), np.concatenate([site[1] for site in sites])
    (chosen,) = best(total[None])
    assert chosen == min(TEMPERATURES, key=lambda t: by_hand(*pooled, t))
    assert chosen == pytest.approx(sharp, rel=0.25)


def test_of_equals_the_temperature_nearest_to_one_is_taken() -> None:
    assert best(np.zeros((2, len(TEMPERATURES)))).tolist() == [1.0, 1.0]


def test_each_member_has_its_own_and_a_head_keeps_its_ranks() -> None:
    (sharp, target), (flat, _) = cases(0, 900, 3.0), cases(0, 900, 0.5)
    losses = np.stack([class_losses(sharp, target), class_losses(flat, target)])
    state = {"backbone.temperatures.cls.values": np.array([2.0, 1.0], np.float32)}
    found = tempered({"cls/base_models": losses, "cls/cases": np.array([900.0])}, state)
    values = found["backbone.temperatures.cls.values"]
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, best(losses) * [2.0, 1.0], rtol=1e-6)  # relative to what was measured
    head = {"heads.cls.weight": np.ones((3, 2), np.float32), "heads.cls.bias": np.arange(3, dtype=np.float32)}
    found = tempered({"cls/answers": losses[:1], "cls/cases": np.array([900.0])}, head)
    np.testing.assert_allclose(found["heads.cls.bias"], head["heads.cls.bias"] / best(losses)[0], rtol=1e-6)
    np.testing.assert_allclose(found["heads.cls.weight"], head["heads.cls.weight"] / best(losses)[0], rtol=1e-6)


def test_without_a_label_there_is_no_temperature() -> None:
    sums = {"cls/answers": np.zeros((1, len(TEMPERATURES))), "cls/cases": np.zeros(1)}
    with pytest.raises(RunError, match=r"(?s)No site has a label for task 'cls'.*split\.val"), np.errstate(all="raise"):
        tempered(sums, {})
