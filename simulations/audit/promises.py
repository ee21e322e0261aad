"""Promises that are the same for every study, tried once in an audit with made-up sites, a server and commands."""

from __future__ import annotations

from functools import partial

from fedgraft.simulations.audit.checks import attempts
from fedgraft.simulations.audit.findings import AttackAttempt
from fedgraft.simulations.audit.home import at_home
from fedgraft.simulations.audit.other_studies import carried_out_elsewhere
from fedgraft.simulations.audit.program import at_the_program
from fedgraft.simulations.audit.program.supply import supply
from fedgraft.simulations.audit.server import at_the_server


def promises(stage: str, seed: int) -> list[AttackAttempt]:
    """All of these, yet to be carried out; `stage` is the name under which they are found. `seed` draws lies."""
    words = "nor at sites of other studies, with other kinds of stages, metrics and sums"
    return [
        AttackAttempt(stage, "coordinator, elsewhere", words, partial(carried_out_elsewhere, seed)),
        *attempts(stage, at_home.CHECKS),
        *attempts(stage, at_the_server.CHECKS),
        *attempts(stage, at_the_program.CHECKS),
        supply(stage),
    ]
