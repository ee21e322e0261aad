"""A site's own rules. What a study asks for is a request: the site takes the stricter of both, or refuses.

The file belongs to the hospital and never leaves it; nothing that arrives from outside can widen it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fedgraft.common.base.errors import StudyError
from fedgraft.common.base.value import Value
from fedgraft.common.config.config_files import describe, read_mapping
from fedgraft.common.plugins.plugin import canonical
from fedgraft.common.privacy.accountant import (
    Event,
    Unit,
    default_delta,
    epsilon,
    noise_for,
)
from fedgraft.common.study.plan import Role
from fedgraft.common.study.study import Study
from fedgraft.common.study.subgroups import Groups, Subgroup

# Strict, because a rule that was read as something else than its author wrote is worse than none.
_Switch = Annotated[bool, Field(strict=True)]
_Positive = Annotated[float, Field(gt=0, strict=True)]
_Share = Annotated[float, Field(gt=0, le=1, strict=True)]
_Count = Annotated[int, Field(ge=1, strict=True)]


Agreement = Literal["none", "bands", "exact"]
Metrics = Literal["none", "secure_aggregation", "noised", "suppressed", "exact"]


class SitePolicy(Value):
    """What a hospital allows. Every default is on the safe side.

    `secure_aggregation_only` keeps the site out of studies without masks, where the coordinator sees each site's own
    part. `unit` is what is protected: all images of a patient together, or each image by itself; "patient" keeps a site
    whose data do not say whose an image is out of studies with differential privacy. `epsilon_per_study`
    bounds one study, `epsilon_lifetime` all studies together. `delta` = None is min(1e-3, N^-1.1) of the site's
    patients. `sample_rate_max` bounds the share of patients in one batch, `steps_max` the steps of a whole study.
    `backbones` and `train` = None allow any. `metrics` is what may leave about the private data, besides what privacy
    pays for: nothing; sums of metrics inside masked sums over several sites; noised counts of the test cases, once in a
    study, at the price of `metrics_epsilon` and of `metrics_lifetime` for all studies; the same counts exact but for
    those below ten, for the first `metrics_studies` studies and no more; or exact figures in every round, from which a
    coordinator can find out every single label. `keep_features` lets what a frozen backbone makes of the images lie on
    the site's disk until the study ends. `retain_statistics` lets the coordinator keep the site's own sums of features
    beyond the study, where they are without noise. `agreement` is what the site answers when it is asked what it could
    supply, before a study is approved: nothing; numbers of patients in bands, those below ten not told from none, and
    in all at most `agreement_answers` answers that differ; or exact numbers. `plugins` lists distributions whose code
    studies may use, each with the digest of its installed files, as `fedgraft site plugins` tells it.

    With `release: hold` the last that leaves of a study waits until somebody at the site has signed that it may
    (`fedgraft site release`); it can be signed only if the study has cost at most `release_epsilon_max`, and an attack
    on it by the site's own patients finds members with an AUC whose whole 95 % interval is at most
    `release_membership_auc_max`.
    """

    allow_non_dp: _Switch = False
    """Whether studies without differential privacy may train here."""
    secure_aggregation_only: _Switch = False
    unit: Unit = "patient"
    epsilon_per_study: _Positive = 3.0
    epsilon_lifetime: _Positive = 8.0
    delta: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = None
    noise_multiplier_min: _Positive = 0.5
    """The least noise of private training, over `max_grad_norm`; a study with less gets this much."""
    max_grad_norm_limit: _Positive = 10.0
    """The largest clip of private training; a study with more gets this much."""
    sample_rate_max: _Share = 0.5
    steps_max: _Count = 2000
    backbones: tuple[str, ...] | None = None
    train: frozenset[Role] | None = None
    min_patients: _Count = 50
    """The fewest patients with which the site takes part at all."""
    metrics: Metrics = "none"
    metrics_epsilon: _Positive = 0.5
    metrics_lifetime: _Positive = 1.0
    metrics_studies: _Count = 2
    keep_features: _Switch = True
    retain_statistics: _Switch = False
    subgroups: dict[str, Groups] = Field(default={})
    """Attributes by which figures may be given as well, each with its groups, as `sex: [female, male]` or `age: [0, 40,
    65, 120]`. A study that asks for other groups of an attribute gets none of it: figures by two sets of groups would
    together tell of the few cases between their ends. What may be shown is judged over all that is listed here,
    whatever a study asks; where that is too much, the first ones by name are shown."""
    agreement: Agreement = "none"
    agreement_answers: _Count = 3
    plugins: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(default={})

    release: Literal["automatic", "hold"] = "automatic"
    persons: Literal["optional", "required"] = "optional"
    """With `required` approvals and releases count only with the signature of a person of the site."""
    release_membership_auc_max: Annotated[float, Field(ge=0.5, le=1, strict=True)] | None = None
    release_epsilon_max: _Positive | None = None

    @field_validator("plugins")
    @classmethod
    def _as_packaging_compares(cls, plugins: dict[str, str]) -> dict[str, str]:
        return {canonical(name): digest for name, digest in plugins.items()}

    @field_validator("subgroups")
    @classmethod
    def _makes_groups(cls, subgroups: dict[str, Groups]) -> dict[str, Groups]:
        for name, groups in subgroups.items():
            try:
                Subgroup.of(name, groups)
            except ValidationError as error:
                raise ValueError(f"{name}: {'; '.join(fault['msg'] for fault in error.errors())}") from None
        return subgroups

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> SitePolicy:
        if self.epsilon_per_study > self.epsilon_lifetime:
            raise ValueError("epsilon_per_study is larger than epsilon_lifetime")
        if self.secure_aggregation_only and self.agreement != "none":
            raise ValueError("agreement lets counts leave in the open, and secure_aggregation_only nothing")
        return self

    @model_validator(mode="after")
    def _limits_of_what_is_held(self) -> SitePolicy:
        limits = (self.release_membership_auc_max, self.release_epsilon_max)
        if self.release != "hold" and limits != (None, None):
            raise ValueError("release_membership_auc_max and release_epsilon_max are for release: hold")
        return self

    def subgroups_of(self, study: Study) -> tuple[Subgroup, ...]:
        """The study's subgroups of which figures may leave."""
        withheld = self.subgroups_withheld(study)
        return tuple(one for one in study.evaluate.subgroups if one.name not in withheld)

    def subgroups_judged(self, study: Study) -> tuple[Subgroup, ...]:
        """All that are looked at before figures by any of the study's leave: those that any other study may ask for.

        If they were judged for each study alone, two studies by attributes that are nearly the same would tell of few.
        """
        if not self.subgroups_of(study):
            return ()
        return tuple(Subgroup.of(name, groups) for name, groups in self.subgroups.items())

    def subgroups_withheld(self, study: Study) -> dict[str, str]:
        """By name the study's other subgroups, and why figures of them do not leave."""
        found: dict[str, str] = {}
        for one in study.evaluate.subgroups:
            if self.metrics == "noised":  # noise that hides a patient leaves nothing of so few, and costs as much again
                found[one.name] = "noised counts are not given group by group"
            elif self.metrics == "none" or (self.metrics == "secure_aggregation" and not study.secure_aggregation):
                found[one.name] = "`metrics` of the policy lets no figures out"
            elif self.metrics == "suppressed" and study.secure_aggregation:
                found[one.name] = "coarse counts do not go into masked sums"
            elif one.name not in self.subgroups:
                found[one.name] = "`subgroups` of the policy does not list it"
            elif not one.is_made_by(self.subgroups[one.name]):
                found[one.name] = f"`subgroups` of the policy lists other groups than {list(one.values or one.bands)}"
        return found

    def delta_for(self, patients: int) -> float:
        """The delta that a new ledger of a site with so many patients starts with, and then keeps."""
        return default_delta(patients) if self.delta is None else self.delta


@dataclass(frozen=True)
class PrivacyRequest:
    """What a stage wants to do at a site, and what it asks of its privacy. None = as the site has it.

    `roles` are those of the entries that are trained. `epsilon` and `steps` are of all the stage's rounds together.
    """

    backbones: tuple[str, ...]
    """All that would run at the site: of an ensemble each base model's, and a teacher's."""
    roles: frozenset[Role]
    private: bool = True
    unit: Unit = "patient"
    epsilon: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    max_grad_norm: float = 1.0
    sample_rate: float = 0.25
    steps: int = 100
    sampled: bool = True
    """Whether chance decides who is in a step; in sums all patients are, and `sample_rate` is 1."""
    secure_aggregation: bool = False
    """Whether all that leaves is under masks."""
    kept: bool = False
    """Whether the coordinator keeps, site by site, what leaves without noise."""
    patients_known: bool = True
    """Whether the site's data say whose a case is."""


@dataclass(frozen=True)
class EffectivePrivacy:
    """What will be done. Without `private` there is no noise, and the figures of privacy say nothing.

    `epsilon_per_study` is the policy's bound on the whole study.
    """

    private: bool
    unit: Unit
    epsilon_per_study: float
    delta: float
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    steps: int
    metrics: Metrics


class Reason(StrEnum):
    """Why a site does not take part: constant words, which say nothing about its data."""

    NOT_PRIVATE = "not_private"
    NOT_SECURE = "not_secure"
    RETAINED_STATISTICS = "retained_statistics"
    BACKBONE = "backbone"
    ROLES = "roles"
    NO_PATIENTS = "no_patient_column"
    TOO_FEW_PATIENTS = "too_few_patients"
    BAD_REQUEST = "bad_request"
    DELTA = "delta"
    STEPS = "steps"
    BUDGET = "budget"
    NOT_AWAITED = "release_not_awaited"
    NO_LAST_STEP = "release_early_stopping"


def read_policy(path: Path) -> SitePolicy:
    """The policy in a YAML file; StudyError lists every fault."""
    try:
        return SitePolicy.model_validate(read_mapping(path))
    except ValidationError as error:
        raise StudyError(str(path), describe(error)) from None


def effective(
    policy: SitePolicy,
    request: PrivacyRequest,
    patients: int,
    delta: float | None = None,
    reserved: tuple[Event, ...] = (),
) -> EffectivePrivacy | Reason:
    """The stricter of the site's policy and a study's request, or why there is none.

    `delta` is that of the site's ledger, if it has one: a site keeps its first delta however many patients it gets.
    `reserved` is what else the study will cost here, for which room must be left within the bound of one study.
    """
    if refusal := _refusal(policy, request, patients):
        return refusal
    delta = policy.delta_for(patients) if delta is None else delta
    own = math.inf if request.epsilon is None else request.epsilon
    sample_rate = min(policy.sample_rate_max, request.sample_rate) if request.sampled else 1.0
    noise_multiplier = max(policy.noise_multiplier_min, request.noise_multiplier or 0.0)
    if request.private:
        # A ledger adds up at one delta. A larger one from outside is as good as the site's; a smaller one is not.
        if request.delta is not None and request.delta < delta:
            return Reason.DELTA
        for limit, reserved_events in ((own, ()), (policy.epsilon_per_study, reserved)):
            if not epsilon([Event(noise_multiplier, sample_rate, request.steps), *reserved_events], delta) <= limit:
                noise_multiplier = max(
                    noise_multiplier, noise_for(limit, delta, sample_rate, request.steps, reserved_events)
                )
            if not epsilon([Event(noise_multiplier, sample_rate, request.steps), *reserved_events], delta) <= limit:
                return Reason.BUDGET
    single = request.unit == "image" or not request.patients_known
    unit: Unit = "image" if policy.unit == "image" and single else "patient"
    max_grad_norm = min(policy.max_grad_norm_limit, request.max_grad_norm)
    return EffectivePrivacy(
        request.private,
        unit,
        policy.epsilon_per_study,
        delta,
        noise_multiplier,
        max_grad_norm,
        sample_rate,
        request.steps,
        policy.metrics,
    )


def _refusal(policy: SitePolicy, request: PrivacyRequest, patients: int) -> Reason | None:
    asked = (request.epsilon, request.delta, request.noise_multiplier, request.max_grad_norm, request.sample_rate)
    sound = (
        all(value is None or 0 < value < math.inf for value in asked)
        and request.sample_rate <= 1
        and request.steps >= 1
    )
    grounds = (
        (policy.secure_aggregation_only and not request.secure_aggregation, Reason.NOT_SECURE),
        (not request.private and not policy.allow_non_dp, Reason.NOT_PRIVATE),
        (request.kept and not policy.retain_statistics, Reason.RETAINED_STATISTICS),
        (policy.backbones is not None and not set(request.backbones) <= set(policy.backbones), Reason.BACKBONE),
        (policy.train is not None and not request.roles <= policy.train, Reason.ROLES),
        # Each image would count as a patient, and one who has many would be protected less than is said.
        (request.private and policy.unit == "patient" and not request.patients_known, Reason.NO_PATIENTS),
        (patients < policy.min_patients, Reason.TOO_FEW_PATIENTS),
        (not sound, Reason.BAD_REQUEST),
        # Fewer steps than asked for would stop a study halfway, after the site has paid for the first half.
        (request.steps > policy.steps_max, Reason.STEPS),
    )
    return next((reason for refused, reason in grounds if refused), None)
