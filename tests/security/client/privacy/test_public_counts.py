"""How many patients a site has is not to be had from what it sends: not from a sum's spread, a delta, or a greeting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.client.data.cohorts.cohort import Cohort, Problem, learning_patients
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.ledger.public_counts import PublicCounts, coarse
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.models.model import state_arrays
from fedgraft.common.privacy.accountant import default_delta
from fedgraft.common.protocol.instructions import Greeting, Instruction, Update
from fedgraft.common.study.plan import Role
from fedgraft.common.study.study import Study
from helpers.work import CPU, MakeStudy, images

RATE, NOISE, LR, STEPS = 0.5, 2.0, 0.5, 4
STAGE = {
    "name": "tune",
    "where": "labelled",
    "local": {
        "kind": "gradient",
        "optimiser": "sgd",
        "momentum": 0.0,
        "fixed_norm_stats": True,
        "train": {"roles": ["body", "head"]},
        "steps": STEPS,
        "lr": LR,
        "private": {"noise_multiplier": NOISE, "max_grad_norm": 1.0, "sample_rate": RATE},
    },
    "share": {"roles": ["body", "head"]},
    "aggregate": {"kind": "mean"},
}
CLOSED = SitePolicy(min_patients=1, epsilon_per_study=50.0, epsilon_lifetime=50.0)


def a_cohort(patients: int, name: str = "north") -> Cohort:
    inputs, labels = images(patients)
    at = torch.arange(patients)
    splits = {"train": at, "val": at[:0], "test": at[:0], "all": at}
    problems = (Problem("truncated", patients % 3),)
    return Cohort(name, inputs, {"cls": labels}, tuple(map(str, range(patients))), splits, problems, {})


def answers(
    make_study: MakeStudy, folder: Path, patients: int
) -> tuple[Study, Greeting, dict[str, np.ndarray], Update]:
    """What a closed site with so many patients says, and the model that it was sent."""
    study = make_study(plan=[STAGE], evaluate={"every": 0}, split={"train": 0.8, "val": 0.0, "test": 0.2})
    mine = a_cohort(patients)
    guard = PrivacyGuard(study, CLOSED, folder, learning_patients(study, mine))
    site = Site(study, mine, LocalModel(study, CPU), folder, guard)
    greeting = site.greet()
    torch.manual_seed(3)
    state = {key: array.copy() for key, array in state_arrays(LocalModel(study, CPU).model).items()}
    update = site.visit(Instruction(study.digest, 1, 0, 1, True, None, state))
    assert isinstance(update, Update)
    return study, greeting, state, update


def estimated(state: dict[str, np.ndarray], update: Update) -> float:
    """N as the coordinator works it out: the noise of all steps, of which it knows all but what it was divided by."""
    changes = np.concatenate([(array.astype(float) - state[key]).ravel() for key, array in update.tensors.items()])
    spread = np.sqrt(np.mean(np.square(changes)))  # noise is far larger than what was learnt
    return float(LR * NOISE * np.sqrt(STEPS) / (RATE * spread))


def test_an_upload_tells_the_public_number_and_not_the_true_one(make_study: MakeStudy, tmp_path: Path) -> None:
    for patients in (31, 40, 50):
        study, _, state, update = answers(make_study, tmp_path / str(patients), patients)
        assert estimated(state, update) == pytest.approx(coarse(patients), rel=0.02)
        assert study.plan[0].local.private.expected_units is None  # type: ignore[union-attr]
    assert coarse(31) == coarse(40) == coarse(50) == 50


def test_nothing_else_that_is_said_follows_the_number(make_study: MakeStudy, tmp_path: Path) -> None:
    said = []
    for patients in (31, 32, 49):
        _, greeting, _, update = answers(make_study, tmp_path / str(patients), patients)
        assert update.spent is not None
        said.append((greeting, dict(update.weights), dict(update.train), update.spent, update.metrics))
    assert said[0] == said[1] == said[2]
    assert said[0][0].cases == {"train": 50}
    assert not said[0][0].labels
    assert not said[0][0].problems


def test_delta_follows_the_public_number(make_study: MakeStudy, tmp_path: Path) -> None:
    """At hospitals so large that it is below the most that a delta may be."""
    study = make_study(plan=[STAGE], evaluate={"every": 0}, split={"train": 0.8, "val": 0.0, "test": 0.2})
    for patients in (1_001, 1_400, 1_500):
        guard = PrivacyGuard(study, CLOSED, tmp_path / str(patients), patients)
        guard.charge(study.plan[0], 1, frozenset({Role.BODY, Role.HEAD}), "0" * 64, patients)
        spent = guard.spend()
        assert spent is not None
        assert spent.delta == default_delta(1_500) < 1e-3


def test_the_number_stays_however_many_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "public_counts.json"
    assert PublicCounts(path).of("patient", 45) == 50
    assert PublicCounts(path).of("patient", 5_000) == 50
    assert PublicCounts(path).of("image", 5_000) == 5_000
    assert PublicCounts(path).of("patient", 1) == 50


def test_a_round_that_is_asked_again_does_not_tell_that_a_patient_came(make_study: MakeStudy, tmp_path: Path) -> None:
    """The answer of then is sent again, byte for byte: a refusal in its place would say that the number has changed."""
    study, _, state, first = answers(make_study, tmp_path, 40)
    for patients in (40, 41):  # as after a restart, when the data are looked at anew
        guard = PrivacyGuard(study, CLOSED, tmp_path, patients)
        site = Site(study, a_cohort(patients), LocalModel(study, CPU), tmp_path, guard)
        again = site.visit(Instruction(study.digest, 1, 0, 1, True, None, state))
        assert isinstance(again, Update), patients
        assert all(again.tensors[key].tobytes() == array.tobytes() for key, array in first.tensors.items())


def test_steps_are_coarse_and_never_below() -> None:
    found = [coarse(count) for count in range(1, 20_000)]
    assert all(at <= step <= max(10, 1.7 * at) for at, step in enumerate(found, start=1))
    assert len(set(found)) == 21


def test_a_study_may_fix_the_number_for_all_sites(make_study: MakeStudy, tmp_path: Path) -> None:
    own = {**STAGE["local"], "private": {**STAGE["local"]["private"], "expected_units": 200}}  # type: ignore[dict-item]
    study = make_study(
        plan=[STAGE | {"local": own}], evaluate={"every": 0}, split={"train": 0.8, "val": 0, "test": 0.2}
    )
    mine = a_cohort(40)
    site = Site(study, mine, LocalModel(study, CPU), tmp_path, PrivacyGuard(study, CLOSED, tmp_path, 40))
    state = {key: array.copy() for key, array in state_arrays(LocalModel(study, CPU).model).items()}
    update = site.visit(Instruction(study.digest, 1, 0, 1, True, None, state))
    assert isinstance(update, Update)
    assert estimated(state, update) == pytest.approx(200, rel=0.02)


def test_where_figures_may_be_shown_counts_are_exact(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(plan=[STAGE], evaluate={"every": 0}, split={"train": 0.8, "val": 0.0, "test": 0.2})
    mine = replace(a_cohort(31))
    policy = CLOSED.model_copy(update={"metrics": "exact"})
    site = Site(study, mine, LocalModel(study, CPU), tmp_path, PrivacyGuard(study, policy, tmp_path, 31))
    assert site.greet().cases["train"] == 31
