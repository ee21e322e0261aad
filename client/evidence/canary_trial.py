"""Whether the trainer that is installed at the site keeps the promise of its ledger, on made-up patients."""

from __future__ import annotations

import math
from typing import Any

from fedgraft.client.attacks.attack_target import AttackTarget
from fedgraft.client.attacks.canaries import CANARIES, DELTA, with_noise
from fedgraft.client.evidence.statement import Statement
from fedgraft.client.privacy.ledger.hash_chain import Row
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.common.evidence.audit_sheet import NOT_TESTED
from fedgraft.common.privacy.accountant import Event, epsilon
from fedgraft.common.protocol.routing import privacy_request
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.stages.training import Private

_MOST_STEPS = 200
_MOST_CLAIMED = 6.0
"""A bound from so many canaries cannot be above it, so that a larger claim could not be refuted."""


def study_charges(statement: Statement) -> tuple[Row, ...]:
    """The ledger's rows of this study, oldest first; LedgerError if the ledger cannot be trusted."""
    held = Held.of(statement.config.state, statement.config.witness)
    rows = held.open(math.inf).rows() if held.exists() else ()
    return tuple(row for row in rows if row.job == statement.study.digest)


def canary_trial(statement: Statement) -> dict[str, Any]:
    """The lower bound on epsilon from one run over canaries with the noise that was charged, and what is claimed."""
    charged = [row for row in study_charges(statement) if row.facts.release == "train"]
    stages = [
        (stage, stage.local)
        for stage in statement.study.plan
        if isinstance(stage.local, Gradient) and isinstance(privacy_request(stage), Private)
    ]
    if not charged or not stages:
        return {NOT_TESTED: "the ledger has no charge of private training for this study"}
    weakest = min(charged, key=lambda row: row.event.noise_multiplier).event
    steps = min(sum(row.event.steps for row in charged), _MOST_STEPS)
    claimed = epsilon([Event(weakest.noise_multiplier, weakest.sample_rate, steps)], DELTA)
    if claimed > _MOST_CLAIMED:
        return {NOT_TESTED: f"epsilon of {steps} such steps is above {_MOST_CLAIMED:g}, which canaries cannot refute"}
    stage, work = stages[0]
    terms = {"sample_rate": weakest.sample_rate, "expected_units": CANARIES // 2}
    target = AttackTarget(statement.study, stage.name, work, ()).asking({}, terms)
    bound = with_noise(target, weakest.noise_multiplier, steps, claimed, seed=0)
    return {
        "canaries": CANARIES,
        "steps": steps,
        "delta": DELTA,
        "noise_multiplier": weakest.noise_multiplier,
        "claimed": round(claimed, 3),
        "lower_bound": round(bound, 3),
    }
