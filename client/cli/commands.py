"""What a hospital's people type to see what their site has spent and what has left it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from fedgraft.client.cli.records_commands import demand_agreement
from fedgraft.client.enrolment.config import read_site
from fedgraft.client.governance.budget import (
    Budget,
    Proposal,
    budget,
    plot,
    propose,
)
from fedgraft.client.governance.egress import EgressEntry, EgressLog
from fedgraft.client.governance.plugins import allowed_to_look
from fedgraft.common.base.console.terminal import OUT, say
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError
from fedgraft.common.checks.explain import check_study
from fedgraft.common.study.study import Study, locate, read_study


def show_budget(folder: Path, study: Path | None, patients: int | None, picture: Path | None, *, as_json: bool) -> None:
    """What is spent and left, and what the study in a file would cost."""
    if picture is not None:
        demand_place(picture, file=True)
    config = read_site(folder)
    account = budget(config)
    with allowed_to_look(config.policy):
        proposal = propose(config, _checked(study), patients) if study is not None else None
    if picture is not None:
        if account is None:
            raise InputError("Nothing is spent yet, so there is nothing to plot.")
        plot(account, picture)
    if as_json:
        facts = {"budget": asdict(account) if account else None, "proposal": asdict(proposal) if proposal else None}
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    if account is None:
        say(f"Nothing is spent. Limits: epsilon {config.policy.epsilon_per_study:g} for one study, ")
        say(f"{config.policy.epsilon_lifetime:g} for all together.")
    else:
        _show_account(account)
    if proposal is not None:
        _show_proposal(proposal)


def _checked(path: Path) -> Study:
    found, _ = read_study(locate(path))
    check_study(found, str(path))
    return found


def show_egress(folder: Path, number: int | None, *, as_json: bool) -> None:
    """All that left, checked line by line; or one message with its names, shapes, digests and grounds."""
    config = read_site(folder)
    entries = list(EgressLog(config.state, config.witness).entries())
    if number is not None:
        if not 1 <= number <= len(entries):
            raise InputError(f"There is no message {number}: the log has {len(entries)}.")
        entries = [entries[number - 1]]
    if as_json:
        sys.stdout.write(json.dumps([asdict(entry) for entry in entries]) + "\n")
    elif number is not None:
        _show_entry(entries[0])
    else:
        _show_entries(entries)
    demand_agreement(config, folder)


def _show_account(account: Budget) -> None:
    table = Table("study", "charges", "steps", "epsilon", "tighter bound", "last")
    for job in account.jobs:
        table.add_row(job.study[:12], str(job.charges), str(job.steps), *_both(job.epsilon, job.tight), job.last)
    table.add_section()
    table.add_row("all", str(len(account.after_each)), "", *_both(account.spent, account.tight), "")
    OUT.print(table)
    say(
        f"Limits: epsilon {account.epsilon_per_study:g} for one study, {account.epsilon_lifetime:g} for all together; "
        f"at delta {account.delta:.1e}, for adding or removing one {account.unit}."
    )
    for one in account.refused:
        say(f"Refused {one.count} times: study {one.job[:12]}, round {one.round}, {one.reason.value}")


def _show_proposal(proposal: Proposal) -> None:
    say(f"Study {proposal.study[:12]} at a site of {proposal.patients} patients:")
    for stage, noise_multiplier, cost in proposal.stages:
        say(f"  {stage}: noise {noise_multiplier:.2f} times `max_grad_norm`, epsilon {cost:.2f}")
    if proposal.stages:
        say(f"  the whole study: epsilon {proposal.epsilon:.2f}; all studies after it: {proposal.total_after:.2f}")
    say(f"  refused ({proposal.refused})" if proposal.refused else "  within the policy")


def _show_entries(entries: list[EgressEntry]) -> None:
    table = Table("message", "when (UTC)", "study", "exchange", "what", "entries", "grounds")
    for entry in entries:
        what = f"{entry.kind} {entry.words.get('code') or entry.words.get('decision', '')}".strip()
        count = str(len(entry.tensors) + len(entry.metrics))
        table.add_row(str(entry.seq), entry.at, entry.study[:12], str(entry.exchange), what, count, entry.why)
    OUT.print(table)
    last = entries[-1].hash if entries else "none"
    say(f"{len(entries)} messages, each sealed to the one before. Hash of the last: {last}")


def _show_entry(entry: EgressEntry) -> None:
    say(f"Message {entry.seq}, {entry.at} UTC: {entry.kind} in exchange {entry.exchange} of study {entry.study}")
    say(f"Grounds: {entry.why}")
    for title, arrays in (("entries", entry.tensors), ("metric sums", entry.metrics)):
        if arrays:
            table = Table(title, "type", "shape", "SHA-256")
            for name, (kind, shape, digest) in arrays.items():
                table.add_row(name, kind, "x".join(map(str, shape)) or "one number", digest)
            OUT.print(table)
    say(f"All other words: {json.dumps(entry.words, ensure_ascii=False)}")


def _both(epsilon: float, tight: float | None) -> tuple[str, str]:
    return f"{epsilon:.2f}", "-" if tight is None else f"{tight:.2f}"
