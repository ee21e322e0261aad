"""All attacks on one study, in order: its private stages, what leaves without noise, what metrics and masks tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fedgraft.client.attacks import canaries
from fedgraft.client.attacks.attack_target import CPU, AttackTarget, seen_at
from fedgraft.client.privacy.ledger.public_counts import coarse
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.protocol.routing import changed, releases_plainly
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.stages.training import Private
from fedgraft.common.study.study import Study
from fedgraft.simulations.audit.attacks import (
    inversion,
    masks,
    metrics_oracle,
    plain,
)
from fedgraft.simulations.audit.attacks.mechanism import mechanism
from fedgraft.simulations.audit.attacks.noised import sums_under_attack
from fedgraft.simulations.audit.classes import as_classes
from fedgraft.simulations.audit.findings import AttackAttempt, Finding
from fedgraft.simulations.audit.lying import courses
from fedgraft.simulations.audit.promises import promises
from fedgraft.simulations.planning.pricing import price, private_stages

NO_NOISE = "no noise"
"""The name of findings about stages that release without any."""
_ALL = "every stage"
_CONTROL = "control"
_CONTROL_CLAIM = "without privacy this attack succeeds, so that it could fail"


@dataclass(frozen=True)
class Audit:
    """What was asked, and all that was found. It holds if no finding fails."""

    study: str
    digest: str
    patients: int
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether no claim failed, but those that may."""
        return not any(finding.fails for finding in self.findings)


def finished(study: Study, patients: int, findings: Sequence[Finding]) -> Audit:
    """The audit's result: the findings with the study, the number of patients and the seconds they took."""
    seconds = round(sum(finding.seconds for finding in findings), 1)
    return Audit(study.name, study.digest, patients, seconds, tuple(findings))


def attack(study: Study, patients: int, *, allow_plain: bool = False, seed: int = 0) -> list[AttackAttempt]:
    """All attacks on a study, yet to be carried out.

    Noise is what a site with so many `patients` in training would add. `seed` decides which canaries take part and what
    made-up patients look like; noise is never seeded. With `allow_plain`, stages that release without noise are shown
    to be invertible all the same, and accepted. Tasks that ask for something else than classes are attacked as if they
    asked for two.
    """
    study, others = as_classes(study)
    shown = seen_at(study)
    attack_targets = private_targets(shown, patients)
    attempts = []
    for attack_target in attack_targets:
        attempts += mechanism(attack_target) + _guesses(attack_target, seed)
    for (stage, _, _), line in zip(private_stages(shown), price(shown, patients).lines, strict=True):
        if not isinstance(stage.local, Gradient):
            attempts += sums_under_attack(shown, stage, line.noise_multiplier, seed)
    tags = LocalModel(shown, CPU).tags
    for stage in study.plan:
        if releases_plainly(stage, tags):
            words, measure = "what leaves cannot be inverted", partial(plain.invert, shown, stage)
            attempts.append(AttackAttempt(stage.name, NO_NOISE, words, measure, accepted=allow_plain))
    return [
        *attempts,
        *_others(others),
        *_masks(study, seed),
        *_metrics(seed),
        _coordinator(study, seed),
        *promises(_ALL, seed),
        *(_controls(attack_targets[0], seed) if attack_targets else ()),
    ]


def private_targets(study: Study, patients: int) -> list[AttackTarget]:
    """The stages that train with noise, and the noise that they have at a site of so many patients."""
    tags = LocalModel(study, CPU).tags
    attack_targets = []
    for (stage, private, _), line in zip(private_stages(study), price(study, patients).lines, strict=True):
        if not isinstance(stage.local, Gradient) or not isinstance(private, Private):
            continue
        expected = private.expected_units or coarse(patients)
        found = {"noise_multiplier": line.noise_multiplier, "epsilon": None, "expected_units": expected}
        terms = private.model_copy(update=found)
        local = stage.local.model_copy(update={"private": terms})
        attack_targets.append(AttackTarget(study, stage.name, local, changed(stage, tags)))
    return attack_targets


def _guesses(attack_target: AttackTarget, seed: int) -> list[AttackAttempt]:
    """Attacks that no private stage may lose to."""
    attempts = []
    for claim in canaries.CLAIMS:
        words, measure = (
            f"2,000 canaries cannot refute an epsilon of {claim:g}",
            partial(canaries.claimed, attack_target, claim),
        )
        attempts.append(
            AttackAttempt(attack_target.stage, f"canaries, epsilon {claim:g}", words, partial(measure, seed))
        )
    one, many = (partial(how, attack_target, seed, private=True) for how in (inversion.one_case, inversion.imprint))
    attempts.append(
        AttackAttempt(attack_target.stage, "inversion", "one patient cannot be computed from an update", one)
    )
    attempts.append(AttackAttempt(attack_target.stage, "imprint", "a crafted model gives no patient away", many))
    return attempts


def _controls(attack_target: AttackTarget, seed: int) -> list[AttackAttempt]:
    """The same attacks as in `_guesses`, without privacy."""
    one, many = (partial(how, attack_target, seed, private=False) for how in (inversion.one_case, inversion.imprint))
    return [
        AttackAttempt(_CONTROL, "canaries", _CONTROL_CLAIM, partial(canaries.plain, attack_target, seed)),
        AttackAttempt(_CONTROL, "inversion", _CONTROL_CLAIM, one),
        AttackAttempt(_CONTROL, "imprint", _CONTROL_CLAIM, many),
    ]


def _metrics(seed: int) -> list[AttackAttempt]:
    closed, exact = (partial(metrics_oracle.recovered, rule, seed) for rule in ("none", "exact"))
    words = "with metrics: none, a site's figures tell no labels"
    return [
        AttackAttempt(_ALL, "labels from metrics", words, closed),
        AttackAttempt(_CONTROL, "labels from exact metrics", _CONTROL_CLAIM, exact),
    ]


def _coordinator(study: Study, seed: int) -> AttackAttempt:
    words = "no instruction that the study does not have is carried out"
    return AttackAttempt(_ALL, "coordinator", words, partial(courses.carried_out, study, seed))


def _others(tasks: Sequence[str]) -> list[AttackAttempt]:
    """Says which tasks were not attacked as what they are."""
    words = f"{', '.join(tasks)} asked for two classes instead; what is added to gradients is the same"
    return [AttackAttempt(_ALL, "other answers", "values, labels and masks", None, words)] if tasks else []


def _masks(study: Study, seed: int) -> list[AttackAttempt]:
    claim = "a masked upload looks like uniform noise"
    if not study.secure_aggregation:
        words = "the study has no secure aggregation: the coordinator sees what each site sends"
        return [AttackAttempt(_ALL, "masked uploads", claim, None, words)]
    return [
        AttackAttempt(_ALL, "masked uploads", claim, partial(masks.uniform, study, seed)),
        AttackAttempt(_ALL, "masks, compared", "it tells nothing of its update", partial(masks.unlike, study, seed)),
        AttackAttempt(
            _ALL, "masks, together", "only all uploads are the sum", partial(masks.only_together, study, seed)
        ),
    ]
