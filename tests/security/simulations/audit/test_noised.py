"""The audit's attacks on noised sums: sound ones hold, and each way of breaking them is found out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedgraft.client.privacy.dp import dp_statistics, noise, secret
from fedgraft.client.training import survival as survival_counts
from fedgraft.client.training.model.loader import Loader
from fedgraft.common.base.files import CONFIGS
from fedgraft.common.study.study import Study, find_study
from fedgraft.simulations.audit.attack import attack
from fedgraft.simulations.audit.attacks.noised import repeats, sums_under_attack
from helpers.followed import COUNT
from helpers.followed import study as followed
from helpers.work import MakeStudy

Patch = pytest.MonkeyPatch
NOISE, SENSITIVITY = "noise of sums", "one patient in sums"


@pytest.fixture
def features(make_study: MakeStudy) -> Study:
    """Two heads in closed form, from sums of features with noise."""
    tasks = [{"name": "cls", "classes": ["a", "b", "c"]}, {"name": "side", "classes": ["l", "r"]}]
    local = {"kind": "statistics", "of": "features", "private": {"noise_multiplier": 2.0, "max_norm": 3.0}}
    return make_study(
        tasks=tasks, plan=[{"name": "sums", "local": local, "share": "heads", "aggregate": {"kind": "ridge"}}]
    )


@pytest.fixture
def columns() -> Study:
    study, _ = find_study(CONFIGS / "studies" / "private_table.yaml")
    return study


@pytest.fixture
def survival() -> Study:
    """Curves of two arms."""
    local = COUNT["local"] | {"private": {"noise_multiplier": 2.0}}
    return followed(COUNT | {"local": local})


def found(study: Study, name: str) -> bool | None:
    attempts = {one.name: one for one in sums_under_attack(study, study.plan[0], 2.0, 0)}
    return attempts[name].find().passed


@pytest.mark.parametrize("kind", ["features", "columns", "survival"])
@pytest.mark.parametrize("name", [NOISE, SENSITIVITY])
def test_sums_with_noise_hold(kind: str, name: str, request: pytest.FixtureRequest) -> None:
    assert found(request.getfixturevalue(kind), name)


@pytest.mark.slow
def test_every_private_stage_of_sums_is_attacked(columns: Study) -> None:
    names = [attempt.name for attempt in attack(columns, 200) if attempt.stage == "scale"]
    assert names == [NOISE, SENSITIVITY]


def half_the_noise(patch: Patch) -> None:
    real = noise.noised
    patch.setattr(dp_statistics, "noised", lambda sums, deviation: real(sums, deviation / 2))


def the_same_noise(patch: Patch) -> None:
    patch.setattr(secret, "_key", lambda: bytes(32))


def some_of_the_same_noise(patch: Patch) -> None:
    """Every hundredth number has noise that was there before."""
    real = noise.noised

    def repeated(sums: np.ndarray, deviation: float) -> np.ndarray:
        drawn = real(sums, deviation)
        drawn.ravel()[::100] = sums.ravel()[::100] + deviation
        return drawn

    patch.setattr(dp_statistics, "noised", repeated)


def images_summed(patch: Patch) -> None:
    """Every case is a row, not every patient."""
    patch.setattr(dp_statistics, "_units", lambda labelled, *_: [np.array([at]) for at in range(len(labelled))])


def cases_counted(patch: Patch) -> None:
    """Every case leaves by itself, not every patient."""
    patch.setattr(survival_counts, "followed", lambda _, loader, __: _every(loader))


def _every(loader: Loader) -> tuple[np.ndarray, np.ndarray]:
    every = loader.splits["all"].numpy()
    return every, np.zeros_like(every)


def columns_not_clipped(patch: Patch) -> None:
    patch.setattr(np, "clip", lambda values, *_: values)


@pytest.mark.parametrize(
    ("broken", "kind", "name"),
    [
        (half_the_noise, "features", NOISE),
        (half_the_noise, "columns", NOISE),
        (the_same_noise, "features", NOISE),
        (the_same_noise, "columns", NOISE),
        (some_of_the_same_noise, "features", NOISE),
        (half_the_noise, "survival", NOISE),
        (the_same_noise, "survival", NOISE),
        (cases_counted, "survival", SENSITIVITY),
        (images_summed, "features", SENSITIVITY),
        (images_summed, "columns", SENSITIVITY),
        (columns_not_clipped, "columns", SENSITIVITY),
    ],
)
def test_sums_that_are_broken_are_found_out(
    broken: Callable[[Patch], None], kind: str, name: str, request: pytest.FixtureRequest, monkeypatch: Patch
) -> None:
    study = request.getfixturevalue(kind)
    broken(monkeypatch)
    assert found(study, name) is False


def test_two_draws_that_meet_by_chance_are_no_repetition() -> None:
    """On a grid of 2^-24 of the deviation, a release of a million numbers meets another one in a place now and then."""
    one, other = (np.random.default_rng(seed).normal(size=1_000_000) for seed in (0, 1))
    met = np.round(one * 2**24) == np.round(other * 2**24)
    assert not repeats(one, np.where(met | (np.arange(len(one)) < 5), one, other))
    assert not repeats(one[:90], np.where(np.arange(90) == 7, one[:90], other[:90]))
    assert repeats(one[:90], np.where(np.arange(90) % 45 == 7, one[:90], other[:90]))
    assert repeats(one, one)
