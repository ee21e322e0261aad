"""What a site has spent of its privacy, study by study, and what a proposed study would cost it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.ledger.hash_chain import Row, total
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.ledger.ledger import Ledger, RefusedCharge
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import write_atomic
from fedgraft.common.models.initialise import make_model
from fedgraft.common.privacy.accountant import (
    Event,
    aggregate,
    epsilon,
    epsilon_of,
    epsilon_prv,
)
from fedgraft.common.study.study import Study


@dataclass(frozen=True)
class StudySpend:
    """What one study has cost. `tight` is the figure of the tighter accountant, None where it takes too long."""

    study: str
    charges: int
    steps: int
    epsilon: float
    tight: float | None
    last: str


@dataclass(frozen=True)
class Budget:
    """A site's account: caps of its policy, what all studies spent together, and each alone."""

    delta: float
    unit: str
    epsilon_per_study: float
    epsilon_lifetime: float
    spent: float
    tight: float | None
    jobs: tuple[StudySpend, ...]
    refused: tuple[RefusedCharge, ...]
    after_each: tuple[float, ...]
    """Epsilon of all charges up to each."""


@dataclass(frozen=True)
class Proposal:
    """What a study would cost this site: per private stage its noise multiplier and epsilon; why not, if not."""

    study: str
    patients: int
    stages: tuple[tuple[str, float, float], ...]
    epsilon: float
    total_after: float
    refused: str | None
    delta: float = 0.0
    metrics: float = 0.0
    """What the noised counts of the test cases cost, which the site's policy adds at the end; part of `epsilon`."""


def budget(config: SiteConfig) -> Budget | None:
    """The site's account; None if it never charged anything. LedgerError if the ledger cannot be trusted."""
    ledger = _ledger(config)
    if ledger is None:
        return None
    ledger.verify()
    rows = ledger.rows()
    events = [row.event for row in rows]
    return Budget(
        delta=ledger.delta,
        unit=ledger.unit,
        epsilon_per_study=config.policy.epsilon_per_study,
        epsilon_lifetime=config.policy.epsilon_lifetime,
        spent=epsilon(events, ledger.delta),
        tight=epsilon_prv(events, ledger.delta),
        jobs=tuple(_job(study, rows, ledger.delta) for study in dict.fromkeys(row.job for row in rows)),
        refused=ledger.refusals(),
        after_each=tuple(epsilon_of(total(rows[: n + 1]), ledger.delta) for n in range(len(rows))),
    )


def spent(config: SiteConfig) -> tuple[float, int]:
    """Epsilon of all studies together, and how many charges were refused. LedgerError as of `budget`."""
    ledger = _ledger(config)
    if ledger is None:
        return 0.0, 0
    ledger.verify()
    return epsilon([row.event for row in ledger.rows()], ledger.delta), len(ledger.refusals())


def propose(config: SiteConfig, study: Study, patients: int | None = None) -> Proposal:
    """What `study` would cost a site with so many `patients` in training; as in its last charge, if not given."""
    ledger = _ledger(config)
    rows = ledger.rows() if ledger else ()
    if patients is None and not rows:
        raise InputError("This site has no ledger yet, so its size is not known.", fix="Say it with --patients N.")
    patients = rows[-1].facts.patients if patients is None else patients
    guard = guard_of(config, study, patients)
    tags = make_model(study).tags()
    refused = None
    try:
        planned = guard.planned(tags)
    except Refused as error:
        return Proposal(study.digest, patients, (), 0.0, 0.0, f"{error.code.value}: {error.why}")
    try:
        guard.admit(tags)
    except Refused as error:
        refused = f"{error.code.value}: {error.why}"
    delta = guard.delta
    named = [
        (stage.name, Event(privacy.noise_multiplier, privacy.sample_rate, privacy.steps)) for stage, privacy in planned
    ]
    shown = list(guard.metrics_events())
    named += [("metrics", event) for event in shown]
    events = [event for _, event in named]
    lines = tuple((name, event.noise_multiplier, epsilon([event], delta)) for name, event in named)
    others = [row.event for row in rows if row.job != study.digest]
    cost, after = epsilon(events, delta), epsilon(others + events, delta)
    return Proposal(study.digest, patients, lines, cost, after, refused, delta, epsilon(shown, delta))


def guard_of(config: SiteConfig, study: Study, patients: int, *, looks: bool = False) -> PrivacyGuard:
    """The guard that the running site would have, with so many patients in training; or one that only `looks`."""
    return PrivacyGuard(
        study,
        config.policy,
        config.state,
        patients,
        patients_known=config.cohort.knows_patients,
        witness=config.witness,
        looks=looks,
    )


def plot(account: Budget, path: Path) -> None:
    """Epsilon after each charge, with the policy's caps, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.step(range(1, len(account.after_each) + 1), account.after_each, where="post", label="spent")
    for value, name, style in (
        (account.epsilon_lifetime, "all studies", "--"),
        (account.epsilon_per_study, "one study", ":"),
    ):
        axes.axhline(value, color="0.4", linestyle=style, label=f"limit of {name}: {value:g}")
    axes.set(xlabel="charges", ylabel=f"epsilon at delta {account.delta:.1e}", ylim=(0, None))
    axes.legend(loc="upper left", frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    write_atomic(path, drawn.getvalue())


def _ledger(config: SiteConfig) -> Ledger | None:
    held = Held.of(config.state, config.witness)
    return held.open(config.policy.epsilon_lifetime) if held.exists() else None


def _job(study: str, rows: Sequence[Row], delta: float) -> StudySpend:
    own = [row for row in rows if row.job == study]
    events = aggregate([row.event for row in own])
    steps = sum(event.steps for event in events)
    return StudySpend(study, len(own), steps, epsilon(events, delta), epsilon_prv(events, delta), own[-1].at)
