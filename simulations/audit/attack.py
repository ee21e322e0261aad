"""All attacks on one study, in order: its private stages, what leaves without noise, and what metrics tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from client.workbench import Workbench
from common.plan import Gradient
from common.pricing import price, private_stages
from common.study import Study
from common.travel import changed, releases_plainly
from simulations.audit import canaries, inversion, metrics_oracle, plain
from simulations.audit.desk import CPU, Desk, seen_at
from simulations.audit.findings import Finding, find
from simulations.audit.mechanism import CHECKS, mechanism

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


def attack(study: Study, patients: int, *, allow_plain: bool = False, seed: int = 0) -> Iterator[Finding]:
    """One finding after the other. Noise is what a site with so many `patients` in training would add.

    `seed` decides which canaries take part and what made-up patients look like; noise is never seeded.
    With `allow_plain`, stages that release without noise are found invertible and accepted.
    """
    at_most = seen_at(study)
    desks = private_desks(at_most, patients)
    for desk in desks:
        yield from mechanism(desk)
        yield from _guesses(desk, seed)
    tags = Workbench(at_most, CPU).tags
    for stage in study.plan:
        if releases_plainly(stage, tags):
            claim = "what leaves cannot be inverted"
            found = find(stage.name, NO_NOISE, claim, partial(plain.invert, at_most, stage))
            yield replace(found, accepted=allow_plain)
    claim = "with metrics: none, a site's figures tell no labels"
    yield find(_ALL, "labels from metrics", claim, partial(metrics_oracle.recovered, "none", seed))
    claim = "an upload under a mask looks like uniform noise"
    words = "masked sums are not built in this version, so there is nothing to test"
    yield Finding(_ALL, "masked uploads", claim, None, None, "at most", None, 0.0, words)
    yield find(_CONTROL, "labels from exact metrics", _CONTROL_CLAIM, partial(metrics_oracle.recovered, "exact", seed))
    if desks:
        yield from _controls(desks[0], seed)


def private_desks(study: Study, patients: int) -> list[Desk]:
    """The private stages with the noise that they have at a site of so many patients."""
    tags = Workbench(study, CPU).tags
    desks = []
    for (stage, private, _), line in zip(private_stages(study), price(study, patients).lines, strict=True):
        assert isinstance(stage.local, Gradient)
        terms = private.model_copy(update={"sigma": line.sigma, "epsilon": None})
        local = stage.local.model_copy(update={"private": terms})
        desks.append(Desk(study, stage.name, local, changed(stage, tags)))
    return desks


def expected_findings(study: Study) -> int:
    """How many findings `attack` will give."""
    tags = Workbench(seen_at(study), CPU).tags
    private = len(tuple(private_stages(study)))
    plainly = sum(releases_plainly(stage, tags) for stage in study.plan)
    return private * (len(CHECKS) + len(canaries.CLAIMS) + 2) + (3 if private else 0) + plainly + 3


def _guesses(desk: Desk, seed: int) -> Iterator[Finding]:
    """Attacks that no private stage may lose to."""
    for claim in canaries.CLAIMS:
        words = f"2,000 canaries cannot refute an epsilon of {claim:g}"
        yield find(desk.stage, f"canaries, epsilon {claim:g}", words, partial(canaries.claimed, desk, claim, seed))
    words = "one patient cannot be computed from an update"
    yield find(desk.stage, "inversion", words, partial(inversion.one_case, desk, seed, private=True))
    words = "a crafted model gives no patient away"
    yield find(desk.stage, "imprint", words, partial(inversion.imprint, desk, seed, private=True))


def _controls(desk: Desk, seed: int) -> Iterator[Finding]:
    """The same attacks as in `_guesses`, without privacy."""
    yield find(_CONTROL, "canaries", _CONTROL_CLAIM, partial(canaries.plain, desk, seed))
    yield find(_CONTROL, "inversion", _CONTROL_CLAIM, partial(inversion.one_case, desk, seed, private=False))
    yield find(_CONTROL, "imprint", _CONTROL_CLAIM, partial(inversion.imprint, desk, seed, private=False))


def finished(study: Study, patients: int, findings: Sequence[Finding]) -> Audit:
    """The audit of these findings."""
    seconds = round(sum(finding.seconds for finding in findings), 1)
    return Audit(study.name, study.digest, patients, seconds, tuple(findings))
