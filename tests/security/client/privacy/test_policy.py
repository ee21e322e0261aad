"""A site's policy: what a study asks for is taken at most as strictly as the site says, or refused; never wider."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.client.privacy.policy import (
    EffectivePrivacy,
    PrivacyRequest,
    Reason,
    SitePolicy,
    effective,
    read_policy,
)
from fedgraft.common.base.errors import StudyError
from fedgraft.common.privacy.accountant import Event, epsilon
from fedgraft.common.study.plan import Role

POLICY = SitePolicy()
HEADS = frozenset({Role.HEAD})
MODEST = PrivacyRequest(("resnet18",), HEADS, noise_multiplier=3.0, sample_rate=0.1, steps=100)
PATIENTS = 600


def agreed(request: PrivacyRequest, policy: SitePolicy = POLICY) -> EffectivePrivacy:
    terms = effective(policy, request, PATIENTS)
    assert isinstance(terms, EffectivePrivacy)
    return terms


def cost(terms: EffectivePrivacy) -> float:
    return epsilon([Event(terms.noise_multiplier, terms.sample_rate, terms.steps)], terms.delta)


def test_a_modest_request_is_taken_as_it_is() -> None:
    terms = agreed(MODEST)
    assert (terms.noise_multiplier, terms.sample_rate, terms.steps, terms.max_grad_norm) == (3.0, 0.1, 100, 1.0)
    assert (terms.unit, terms.metrics, terms.private) == ("patient", "none", True)
    assert terms.delta == pytest.approx(PATIENTS**-1.1)


@pytest.mark.slow
def test_the_stricter_side_wins() -> None:
    assert cost(agreed(replace(MODEST, epsilon=1.0, noise_multiplier=None))) == pytest.approx(1.0, rel=5e-3)
    assert cost(agreed(replace(MODEST, epsilon=50.0, noise_multiplier=None))) == pytest.approx(3.0, rel=5e-3)
    assert agreed(replace(MODEST, epsilon=50.0)).epsilon_per_study == 3.0
    assert agreed(replace(MODEST, max_grad_norm=1e9)).max_grad_norm == 10.0
    assert agreed(replace(MODEST, sample_rate=1.0)).sample_rate == 0.5
    assert agreed(replace(MODEST, delta=0.1)).delta == pytest.approx(PATIENTS**-1.1)
    assert agreed(replace(MODEST, unit="image")).unit == "patient"
    assert agreed(MODEST, SitePolicy(unit="image")).unit == "patient"
    assert agreed(replace(MODEST, unit="image"), SitePolicy(unit="image")).unit == "image"


@pytest.mark.parametrize("noise_multiplier", [0.01, None])
def test_too_little_noise_is_raised_until_the_job_fits(noise_multiplier: float | None) -> None:
    terms = agreed(replace(MODEST, noise_multiplier=noise_multiplier))
    assert epsilon([Event(terms.noise_multiplier, terms.sample_rate, terms.steps)], terms.delta) <= 3.0
    assert epsilon([Event(terms.noise_multiplier * 0.99, terms.sample_rate, terms.steps)], terms.delta) > 3.0


def test_noise_never_falls_below_the_sites_least() -> None:
    assert (
        agreed(replace(MODEST, noise_multiplier=0.1, sample_rate=0.001, steps=1)).noise_multiplier
        == POLICY.noise_multiplier_min
    )


def test_a_site_keeps_the_delta_of_its_ledger() -> None:
    terms = effective(POLICY, MODEST, PATIENTS, delta=1e-4)
    assert isinstance(terms, EffectivePrivacy)
    assert terms.delta == 1e-4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"private": False}, Reason.NOT_PRIVATE),
        ({"steps": 10**6}, Reason.STEPS),
        ({"steps": 0}, Reason.BAD_REQUEST),
        ({"delta": 1e-9}, Reason.DELTA),
        ({"sample_rate": 1.5}, Reason.BAD_REQUEST),
        ({"sample_rate": math.nan}, Reason.BAD_REQUEST),
        ({"noise_multiplier": math.nan}, Reason.BAD_REQUEST),
        ({"noise_multiplier": math.inf}, Reason.BAD_REQUEST),
        ({"noise_multiplier": 0.0}, Reason.BAD_REQUEST),
        ({"noise_multiplier": 1e9}, Reason.BUDGET),
        ({"max_grad_norm": math.inf}, Reason.BAD_REQUEST),
        ({"epsilon": -1.0}, Reason.BAD_REQUEST),
    ],
    ids=str,
)
def test_what_cannot_be_tightened_is_refused_in_one_word(changes: dict[str, Any], reason: Reason) -> None:
    assert effective(POLICY, replace(MODEST, **changes), PATIENTS) == reason


def test_what_the_site_does_not_allow_is_refused() -> None:
    narrow = SitePolicy(backbones=("densenet121",), train=HEADS, min_patients=500)
    assert effective(narrow, MODEST, PATIENTS) == Reason.BACKBONE
    allowed = replace(MODEST, backbones=("densenet121",))
    assert effective(narrow, replace(allowed, roles=HEADS | {Role.BODY}), PATIENTS) == Reason.ROLES
    assert effective(narrow, allowed, 499) == Reason.TOO_FEW_PATIENTS
    assert isinstance(effective(narrow, allowed, 500), EffectivePrivacy)


def test_a_site_that_lets_nothing_leave_in_the_open_wants_masks() -> None:
    strict = SitePolicy(secure_aggregation_only=True, allow_non_dp=True)
    for private in (True, False):
        assert effective(strict, replace(MODEST, private=private), PATIENTS) == Reason.NOT_SECURE
        assert isinstance(
            effective(strict, replace(MODEST, private=private, secure_aggregation=True), PATIENTS), EffectivePrivacy
        )


def test_work_without_noise_needs_the_sites_word() -> None:
    terms = agreed(replace(MODEST, private=False), SitePolicy(allow_non_dp=True, metrics="exact"))
    assert not terms.private
    assert terms.metrics == "exact"


def mostly(usual: list[Any], strange: list[Any]) -> st.SearchStrategy[Any]:
    """One field of a request. Were all of them strange, hardly a request would get past the first refusal."""
    return st.integers(0, 11).flatmap(lambda throw: st.sampled_from(usual if throw else strange))


REQUESTS = st.builds(
    PrivacyRequest,
    backbones=mostly([("resnet18",), ("resnet18", "resnet18")], [("imprint",), ("resnet18", "imprint")]),
    roles=mostly([HEADS, HEADS | {Role.NORM_AFFINE}], [frozenset(Role)]),
    private=mostly([True], [False]),
    unit=st.sampled_from(["patient", "image"]),
    epsilon=mostly([None, 1.0, 1e9], [math.nan, math.inf, 0.0, -1.0]),
    delta=mostly([None, 1e-3, 0.5], [1e-9, 2.0, math.nan]),
    noise_multiplier=mostly([None, 1e-9, 0.01, 0.3, 0.7, 3.0], [math.nan, math.inf, -1.0, 0.0, 1e9]),
    max_grad_norm=mostly([0.1, 1.0, 1e9], [math.nan, math.inf, -1.0]),
    sample_rate=mostly([0.05, 1.0], [1.5, 0.0, math.nan]),
    steps=mostly([1, 2000], [2001, 10**6, 0, -5]),
)


@pytest.mark.slow
def test_no_request_widens_the_policy() -> None:
    policy = SitePolicy(backbones=("resnet18",), train=HEADS | {Role.NORM_AFFINE}, sample_rate_max=0.1)
    agreed_to = 0

    @settings(max_examples=200, deadline=None)
    @given(REQUESTS)
    def ask(request: PrivacyRequest) -> None:
        nonlocal agreed_to
        terms = effective(policy, request, PATIENTS)
        if isinstance(terms, EffectivePrivacy):
            agreed_to += 1
            _within(policy, request, terms)

    ask()
    assert agreed_to > 20


def _within(policy: SitePolicy, request: PrivacyRequest, terms: EffectivePrivacy) -> None:
    assert terms.private
    assert terms.unit == "patient"
    assert terms.delta == policy.delta_for(PATIENTS)
    assert terms.epsilon_per_study <= 3.0
    assert terms.noise_multiplier >= 0.5
    assert 0 < terms.max_grad_norm <= 10.0
    assert 0 < terms.sample_rate <= 0.1
    assert 1 <= terms.steps <= 2000
    assert set(request.backbones) == {"resnet18"}
    assert request.roles <= {Role.HEAD, Role.NORM_AFFINE}
    assert (
        epsilon([Event(terms.noise_multiplier, terms.sample_rate, terms.steps)], terms.delta) <= terms.epsilon_per_study
    )


def test_a_policy_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("epsilon_per_study: 1\nbackbones: [resnet18]\ntrain: [head, norm_affine]\nmetrics: exact\n")
    policy = read_policy(path)
    assert policy == SitePolicy(
        epsilon_per_study=1.0, backbones=("resnet18",), train=frozenset({Role.HEAD, Role.NORM_AFFINE}), metrics="exact"
    )


def test_all_faults_of_a_policy_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "secure_aggregation_only: 'yes'\nallow_non_dp: 1\nepsilon_per_study: .nan\nnoise_multiplier_min: '0.5'\n"
        "sample_rate_max: 2\nepsilon: 3\nunit: site\n"
    )
    with pytest.raises(StudyError) as caught:
        read_policy(path)
    keys = {fault.split(":")[0] for fault in caught.value.faults}
    assert keys == {
        "secure_aggregation_only",
        "allow_non_dp",
        "epsilon_per_study",
        "noise_multiplier_min",
        "sample_rate_max",
        "epsilon",
        "unit",
    }


def test_a_job_may_not_have_more_than_the_lifetime(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("epsilon_per_study: 9\n")
    with pytest.raises(StudyError, match="larger than epsilon_lifetime"):
        read_policy(path)
