"""A site's own rules. What a study asks for is a request: the site takes the stricter of both, or refuses.

The file belongs to the hospital and never leaves it; nothing that arrives from outside can widen it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from fedgraft.common.base.errors import StudyError
from fedgraft.common.base.value import Value
from fedgraft.common.privacy.accountant import (
    Event,
    Unit,
    default_delta,
    epsilon,
    noise_for,
)
from fedgraft.common.study.plan import Role
from fedgraft.common.study.study import describe, read_mapping

# Strict, because a rule that was read as something else than its author wrote is worse than none.
_Switch = Annotated[bool, Field(strict=True)]
_Positive = Annotated[float, Field(gt=0, strict=True)]
_Share = Annotated[float, Field(gt=0, le=1, strict=True)]
_Count = Annotated[int, Field(ge=1, strict=True)]


Metrics = Literal["none", "masked", "noised", "suppressed", "exact"]


class SitePolicy(Value):
    """What a hospital allows. Every default is on the safe side.

    `masked_only` keeps the site out of studies without masks, where the coordinator sees each site's own part. `unit`
    is what is protected: all images of a patient together, or each image by itself. `epsilon_job` bounds one
    study, `epsilon_lifetime` all studies together. `delta` = None is min(1e-3, N^-1.1) of the site's patients.
    `q_max` bounds the share of patients in one batch, `steps_max` the steps of a whole study. `backbones` and
    `train` = None allow any. `metrics` is what may leave about the private data, besides what privacy pays for:
    nothing; sums of metrics inside masked sums over several sites; noised counts of the test cases, once in a study, at
    the price of `metrics_epsilon` and of `metrics_lifetime` for all studies; the same counts exact but for those below
    ten, for the first `metrics_studies` studies and no more; or exact figures in every round, from which a coordinator
    can find out every single label. `keep_features` lets what a resting backbone makes of the images lie on the site's
    disk until the study ends. `keep_sums` lets the
    coordinator keep the site's own sums of features beyond the study, where they are without noise.
    """

    allow_non_dp: _Switch = False
    masked_only: _Switch = False
    unit: Unit = "patient"
    epsilon_job: _Positive = 3.0
    epsilon_lifetime: _Positive = 8.0
    delta: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = None
    sigma_min: _Positive = 0.5
    clip_max: _Positive = 10.0
    q_max: _Share = 0.5
    steps_max: _Count = 2000
    backbones: tuple[str, ...] | None = None
    train: frozenset[Role] | None = None
    min_patients: _Count = 50
    metrics: Metrics = "none"
    metrics_epsilon: _Positive = 0.5
    metrics_lifetime: _Positive = 1.0
    metrics_studies: _Count = 2
    keep_features: _Switch = True
    keep_sums: _Switch = False

    @model_validator(mode="after")
    def _job_within_lifetime(self) -> SitePolicy:
        if self.epsilon_job > self.epsilon_lifetime:
            raise ValueError("epsilon_job is larger than epsilon_lifetime")
        return self

    def delta_for(self, patients: int) -> float:
        """The delta that a new ledger of a site with so many patients starts with, and then keeps."""
        return default_delta(patients) if self.delta is None else self.delta


@dataclass(frozen=True)
class Request:
    """What a stage wants to do at a site, and what it asks of its privacy. None = as the site has it.

    `roles` are those of the entries that are trained. `epsilon` and `steps` are of all the stage's rounds together.
    """

    backbones: tuple[str, ...]
    """All that would run at the site: of a committee each member's, and a teacher's."""
    roles: frozenset[Role]
    private: bool = True
    unit: Unit = "patient"
    epsilon: float | None = None
    delta: float | None = None
    sigma: float | None = None
    clip: float = 1.0
    q: float = 0.25
    steps: int = 100
    sampled: bool = True
    """Whether chance decides who is in a step; in sums all patients are, and `q` is 1."""
    masked: bool = False
    """Whether all that leaves is under masks."""
    kept: bool = False
    """Whether the coordinator keeps, site by site, what leaves without noise."""


@dataclass(frozen=True)
class Terms:
    """What will be done. Without `private` there is no noise, and the figures of privacy say nothing.

    `epsilon_job` is the policy's bound on the whole study.
    """

    private: bool
    unit: Unit
    epsilon_job: float
    delta: float
    sigma: float
    clip: float
    q: float
    steps: int
    metrics: Metrics


class Reason(StrEnum):
    """Why a site does not take part: constant words, which say nothing about its data."""

    NOT_PRIVATE = "not_private"
    NOT_MASKED = "not_masked"
    KEPT_SUMS = "kept_sums"
    BACKBONE = "backbone"
    ROLES = "roles"
    TOO_FEW_PATIENTS = "too_few_patients"
    BAD_REQUEST = "bad_request"
    DELTA = "delta"
    STEPS = "steps"
    BUDGET = "budget"


def read_policy(path: Path) -> SitePolicy:
    """The policy in a YAML file; StudyError lists every fault."""
    try:
        return SitePolicy.model_validate(read_mapping(path))
    except ValidationError as error:
        raise StudyError(str(path), describe(error)) from None


def effective(
    policy: SitePolicy,
    request: Request,
    patients: int,
    delta: float | None = None,
    reserved: tuple[Event, ...] = (),
) -> Terms | Reason:
    """The stricter of the site's policy and a study's request, or why there is none.

    `delta` is that of the site's ledger, if it has one: a site keeps its first delta however many patients it gets.
    `reserved` is what else the study will cost here, for which room must be left within the bound of one study.
    """
    if refusal := _refusal(policy, request, patients):
        return refusal
    delta = policy.delta_for(patients) if delta is None else delta
    own = math.inf if request.epsilon is None else request.epsilon
    q = min(policy.q_max, request.q) if request.sampled else 1.0
    sigma = max(policy.sigma_min, request.sigma or 0.0)
    if request.private:
        # A ledger adds up at one delta. A larger one from outside is as good as the site's; a smaller one is not.
        if request.delta is not None and request.delta < delta:
            return Reason.DELTA
        for limit, beside in ((own, ()), (policy.epsilon_job, reserved)):
            if not epsilon([Event(sigma, q, request.steps), *beside], delta) <= limit:
                sigma = max(sigma, noise_for(limit, delta, q, request.steps, beside))
            if not epsilon([Event(sigma, q, request.steps), *beside], delta) <= limit:
                return Reason.BUDGET
    unit: Unit = "image" if policy.unit == request.unit == "image" else "patient"
    clip = min(policy.clip_max, request.clip)
    return Terms(request.private, unit, policy.epsilon_job, delta, sigma, clip, q, request.steps, policy.metrics)


def _refusal(policy: SitePolicy, request: Request, patients: int) -> Reason | None:
    asked = (request.epsilon, request.delta, request.sigma, request.clip, request.q)
    sound = all(value is None or 0 < value < math.inf for value in asked) and request.q <= 1 and request.steps >= 1
    grounds = (
        (policy.masked_only and not request.masked, Reason.NOT_MASKED),
        (not request.private and not policy.allow_non_dp, Reason.NOT_PRIVATE),
        (request.kept and not policy.keep_sums, Reason.KEPT_SUMS),
        (policy.backbones is not None and not set(request.backbones) <= set(policy.backbones), Reason.BACKBONE),
        (policy.train is not None and not request.roles <= policy.train, Reason.ROLES),
        (patients < policy.min_patients, Reason.TOO_FEW_PATIENTS),
        (not sound, Reason.BAD_REQUEST),
        # Fewer steps than asked for would stop a study halfway, after the site has paid for the first half.
        (request.steps > policy.steps_max, Reason.STEPS),
    )
    return next((reason for refused, reason in grounds if refused), None)
