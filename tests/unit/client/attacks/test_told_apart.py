"""Attacks as mathematics: what counts as one patient, what chance gives, and what a gradient gives away."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fedgraft.client.attacks.membership import by_likelihood_ratio, by_loss, per_patient, told_apart
from fedgraft.client.attacks.reconstruction import Layer, found_cases


def test_figures_are_per_patient_and_few_patients_say_nothing() -> None:
    # One patient with a hundred images counts as one: the mean of them, on one side.
    names = ["0a"] * 100 + [f"{at:02x}" for at in range(20, 45)] + [f"{at:02x}" for at in range(60, 85)]
    inside = [True] * 125 + [False] * 25
    found = per_patient([0.1] * 100 + [1.0] * 50, [0] * 150, names, inside)
    assert len(found.loss) == 51
    told = told_apart(by_loss(found), found.member)
    assert told is not None
    assert told.share == pytest.approx(1 / 26)
    few = per_patient([0.1] * 19 + [1.0] * 25, [0] * 44, [f"{at:02x}" for at in range(44)], [True] * 19 + [False] * 25)
    assert told_apart(by_loss(few), few.member) is None


def test_chance_finds_nobody_and_a_shift_of_one_class_is_seen_by_the_ratio_alone() -> None:
    rng = np.random.default_rng(0)
    names = [hashlib.sha256(bytes([at // 256, at % 256])).hexdigest()[:32] for at in range(2000)]
    inside = [at % 2 == 0 for at in range(2000)]
    classes = [at // 2 % 2 for at in range(2000)]
    even = per_patient(rng.gamma(2.0, size=2000), classes, names, inside)
    for score in (by_loss, by_likelihood_ratio):
        told = told_apart(score(even), even.member)
        assert told is not None
        assert not told.finds
        assert abs(told.auc - 0.5) < 0.04
    # The hard class is always far off, and its members less so: against their own class they stand out.
    hard = np.array(classes) == 1
    confidence = rng.normal(np.where(hard, np.where(inside, -4.0, -10.0), 5.0), 1.0)
    odd = per_patient(np.log1p(np.exp(-confidence)), classes, names, inside)
    by_class, plain = (told_apart(score(odd), odd.member) for score in (by_likelihood_ratio, by_loss))
    assert by_class is not None
    assert plain is not None
    assert by_class.share > 0.4
    assert plain.share < 0.05


def test_one_patient_comes_back_from_a_linear_layer_and_a_mean_of_many_does_not() -> None:
    rng = np.random.default_rng(0)
    patients, errors = rng.uniform(size=(60, 200)), rng.normal(size=(60, 2))
    alone = Layer(errors[:1].T @ patients[:1], errors[0], patients)
    assert found_cases({"head": alone}) == {0}
    assert found_cases({"head": Layer(errors.T @ patients, errors.sum(axis=0), patients)}) == set()
