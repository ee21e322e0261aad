"""All attacks on one study, in order: its private stages, what leaves without noise, what metrics and masks tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fedgraft.client.training.model.local_model import Workbench
from fedgraft.common.protocol.routing import changed, releases_plainly
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import Study
from fedgraft.simulations.audit import (
    canaries,
    inversion,
    masks,
    metrics_oracle,
    plain,
)
from fedgraft.simulations.audit.attack_target import CPU, Desk, seen_at
from fedgraft.simulations.audit.findings import Attempt, Finding
from fedgraft.simulations.audit.mechanism import mechanism
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
    """The audit of these findings."""
    seconds = round(sum(finding.seconds for finding in findings), 1)
    return Audit(study.name, study.digest, patients, seconds, tuple(findings))


def attack(study: Study, patients: int, *, allow_plain: bool = False, seed: int = 0) -> list[Attempt]:
    """All attacks on a study, yet to be carried out.

    Noise is what a site with so many `patients` in training would add. `seed` decides which canaries take part and what
    made-up patients look like; noise is never seeded. With `allow_plain`, stages that release without noise are shown
    to be invertible all the same, and accepted.
    """
    shown = seen_at(study)
    desks = private_desks(shown, patients)
    attempts = []
    for desk in desks:
        attempts += mechanism(desk) + _guesses(desk, seed)
    for stage, _, _ in private_stages(study):
        if not isinstance(stage.local, Gradient):
            words = "attacks on noised sums are not built into the audit in this version"
            attempts.append(Attempt(stage.name, "noised sums", "sums hide every patient", None, words))
    tags = Workbench(shown, CPU).tags
    for stage in study.plan:
        if releases_plainly(stage, tags):
            words, measure = "what leaves cannot be inverted", partial(plain.invert, shown, stage)
            attempts.append(Attempt(stage.name, NO_NOISE, words, measure, accepted=allow_plain))
    return [*attempts, *_masks(study, seed), *_metrics(seed), *(_controls(desks[0], seed) if desks else ())]


def private_desks(study: Study, patients: int) -> list[Desk]:
    """The stages that train with noise, and the noise that they have at a site of so many patients."""
    tags = Workbench(study, CPU).tags
    desks = []
    for (stage, private, _), line in zip(private_stages(study), price(study, patients).lines, strict=True):
        if not isinstance(stage.local, Gradient):
            continue
        terms = private.model_copy(update={"sigma": line.sigma, "epsilon": None})
        local = stage.local.model_copy(update={"private": terms})
        desks.append(Desk(study, stage.name, local, changed(stage, tags)))
    return desks


def _guesses(desk: Desk, seed: int) -> list[Attempt]:
    """Attacks that no private stage may lose to."""
    attempts = []
    for claim in canaries.CLAIMS:
        words, measure = f"2,000 canaries cannot refute an epsilon of {claim:g}", partial(canaries.claimed, desk, claim)
        attempts.append(Attempt(desk.stage, f"canaries, epsilon {claim:g}", words, partial(measure, seed)))
    one, many = (partial(how, desk, seed, private=True) for how in (inversion.one_case, inversion.imprint))
    attempts.append(Attempt(desk.stage, "inversion", "one patient cannot be computed from an update", one))
    attempts.append(Attempt(desk.stage, "imprint", "a crafted model gives no patient away", many))
    return attempts


def _controls(desk: Desk, seed: int) -> list[Attempt]:
    """The same attacks as in `_guesses`, without privacy."""
    one, many = (partial(how, desk, seed, private=False) for how in (inversion.one_case, inversion.imprint))
    return [
        Attempt(_CONTROL, "canaries", _CONTROL_CLAIM, partial(canaries.plain, desk, seed)),
        Attempt(_CONTROL, "inversion", _CONTROL_CLAIM, one),
        Attempt(_CONTROL, "imprint", _CONTROL_CLAIM, many),
    ]


def _metrics(seed: int) -> list[Attempt]:
    closed, exact = (partial(metrics_oracle.recovered, rule, seed) for rule in ("none", "exact"))
    words = "with metrics: none, a site's figures tell no labels"
    return [
        Attempt(_ALL, "labels from metrics", words, closed),
        Attempt(_CONTROL, "labels from exact metrics", _CONTROL_CLAIM, exact),
    ]


def _masks(study: Study, seed: int) -> list[Attempt]:
    claim = "a masked upload looks like uniform noise"
    if not study.masked:
        words = "the study is not masked: the coordinator sees what each site sends"
        return [Attempt(_ALL, "masked uploads", claim, None, words)]
    return [
        Attempt(_ALL, "masked uploads", claim, partial(masks.uniform, study, seed)),
        Attempt(_ALL, "masks, compared", "it tells nothing of its update", partial(masks.unlike, study, seed)),
        Attempt(_ALL, "masks, together", "only all uploads are the sum", partial(masks.only_together, study, seed)),
    ]
