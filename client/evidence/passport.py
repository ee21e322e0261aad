"""A site's passport of a run: what its records say of the study, part by part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedgraft.client.evidence.canary_trial import study_charges
from fedgraft.client.evidence.statement import Statement
from fedgraft.client.governance.approval import read_approvals
from fedgraft.client.governance.egress import DECISIONS, EgressEntry
from fedgraft.client.governance.records import SETTLE, Records
from fedgraft.client.governance.release.held_answers import HeldAnswers
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.runtime.sessions import exchanges_of
from fedgraft.common.base.environment import code_digest, fedgraft_version
from fedgraft.common.base.errors import InputError, LedgerError
from fedgraft.common.evidence.audit_sheet import NOT_TESTED
from fedgraft.common.identity.person_book import PersonBook
from fedgraft.common.plugins.registry import loaded_digest
from fedgraft.common.privacy.accountant import epsilon


def passport(statement: Statement) -> dict[str, dict[str, Any]]:
    """The parts of the passport, in their order. LedgerError if the site's records do not agree."""
    if found := Records(statement.config, statement.home, exchanges_of).contradictions():
        raise LedgerError(found[0], fix=SETTLE)
    return {
        "study": _study(statement),
        "code": _code(statement),
        "egress": _egress(statement),
        "releases": _releases(statement),
        "ledger": ledger_facts(statement),
        "audit": _audit(statement),
        "refusals": _refusals(statement),
    }


def _study(statement: Statement) -> dict[str, Any]:
    study = statement.study
    approvals = [one for one in read_approvals(statement.home) if one.digest == study.digest]
    newest = approvals[-1].model_dump(mode="json") if approvals else {}
    exchanges = sorted({entry.exchange for entry in statement.sent if entry.exchange})
    return {
        "digest": study.digest,
        "name": study.name,
        "approved": newest.get("approved"),
        "approved_by": newest.get("by"),
        "approval_signed": newest.get("signed"),
        "approver_removed": _removed(statement, newest.get("signed")),
        "exchanges": len(exchanges),
        "secure_aggregation": study.secure_aggregation,
    }


def _code(statement: Statement) -> dict[str, Any]:
    found = {}
    for plugin in statement.study.plugins:
        try:
            found[str(plugin)] = loaded_digest(plugin)
        except InputError as error:
            found[str(plugin)] = f"not known: {error}"
    return {"fedgraft": fedgraft_version(), "digest": code_digest(), "plugins": found, "as_of": "when this was made"}


def _egress(statement: Statement) -> dict[str, Any]:
    kinds: dict[str, dict[str, int]] = {}
    for entry in statement.sent:
        if entry.kind in DECISIONS:
            continue
        own = kinds.setdefault(entry.kind, {"messages": 0, "bytes": 0})
        own["messages"] += 1
        own["bytes"] += _size(entry)
    first, last = statement.sent[0], statement.sent[-1]
    grounds = sorted(
        {ground for entry in statement.sent if entry.kind not in DECISIONS for ground in entry.why.split("; ")}
    )
    marks = {"first": {"seq": first.seq, "hash": first.hash}, "last": {"seq": last.seq, "hash": last.hash}}
    return {"kinds": dict(sorted(kinds.items())), "grounds": grounds, **marks}


def _releases(statement: Statement) -> dict[str, Any]:
    """Who released what and when, as the log says it, and what waits for a person still."""
    decided = [
        {"exchange": entry.exchange, **entry.words, "removed": _removed(statement, entry.words.get("signed"))}
        for entry in statement.sent
        if entry.kind == "release"
    ]
    held = HeldAnswers(statement.config.state, statement.study.digest).all()
    waiting = [one.exchange for one in held if one.decision is None]
    return {"policy": statement.config.policy.release, "decided": decided, "waiting": waiting}


def _removed(statement: Statement, signed: Mapping[str, Any] | None) -> str | None:
    """Since when whoever signed is none of the site's persons any more; None if they are."""
    gone = None if signed is None else PersonBook(statement.home).removal_of(signed["key"])
    return None if gone is None else gone.at


def _size(entry: EgressEntry) -> int:
    """Bytes of the arrays of a message."""
    arrays = [*entry.tensors.values(), *entry.metrics.values()]
    return sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape, _ in arrays)


def ledger_facts(statement: Statement) -> dict[str, Any]:
    """Epsilon of all studies before the first charge of this one and after the last, and the places in the chain."""
    own = study_charges(statement)
    if not own:
        return {"charges": 0}
    config = statement.config
    ledger = Held.of(config.state, config.witness).open(math.inf)
    rows = ledger.rows()
    before, until = ([row for row in rows if row.seq < own[0].seq], [row for row in rows if row.seq <= own[-1].seq])

    def cost(some: Any) -> float:
        return round(epsilon([row.event for row in some], ledger.delta), 4) if some else 0.0

    return {
        "charges": len(own),
        "delta": ledger.delta,
        "unit": ledger.unit,
        "before": cost(before),
        "after": cost(until),
        "study": cost(own),
        "first": {"seq": own[0].seq, "previous": own[0].previous},
        "last": {"seq": own[-1].seq, "hash": own[-1].hash},
    }


def _audit(statement: Statement) -> dict[str, Any]:
    sheet = statement.read("audit")
    if sheet is None:
        return {NOT_TESTED: "the site has made no audit of this run"}
    return {"sheet": sheet.plain()}


def _refusals(statement: Statement) -> dict[str, Any]:
    config, digest = statement.config, statement.study.digest
    held = Held.of(config.state, config.witness)
    charges = held.open(math.inf).refusals() if held.exists() else ()
    instructions = Counter(str(entry.words.get("code")) for entry in statement.sent if entry.kind == "refusal")
    refused: Counter[str] = Counter()
    for one in charges:
        if one.job == digest:
            refused[one.reason.value] += one.count
    return {"instructions": dict(instructions), "charges": dict(refused)}
