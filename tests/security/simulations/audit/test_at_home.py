"""The audit's made-up hospitals: each careless site is found out, beside those of `test_twelve_ways.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from fedgraft.simulations.audit.checks import attempts
from fedgraft.simulations.audit.findings import AttackAttempt
from fedgraft.simulations.audit.home import at_home
from fedgraft.simulations.audit.promises import promises
from helpers import careless_at_home as careless

Patch = pytest.MonkeyPatch
CHECKS: Mapping[str, AttackAttempt] = {attempt.name: attempt for attempt in attempts("home", at_home.CHECKS)}


def test_each_check_is_one_of_every_audit() -> None:
    """That a sound site holds is looked at there: `test_twelve_ways.py`."""
    assert CHECKS.keys() <= {attempt.name for attempt in promises("every stage", 0)}


CARELESS: list[tuple[Callable[[Patch], None], str]] = [
    (careless.delta_of_the_true_number, "number of patients"),
    (careless.counts_are_greeted_with, "number of patients"),
    (careless.failure_is_told, "failure in silence"),
    (careless.figures_follow_what_is_there, "failure in silence"),
    (careless.witness_not_asked, "records put back"),
    (careless.schedule_not_compared, "records put back"),
    (careless.approvals_read_once, "rules changed"),
    (careless.the_last_key_wins, "rules changed"),
    (careless.names_in_refusals_are_not_logged, "what has left"),
    (careless.figures_are_not_logged, "what has left"),
    (careless.pings_are_all_that_is_logged, "what has left"),
    (careless.words_of_studies_are_not_looked_at, "words of a study"),
    (careless.errors_are_told, "words of errors"),
    (careless.fingerprints_are_not_compared, "members"),
    (careless.keys_come_from_the_coordinator, "members"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "name"), CARELESS, ids=lambda value: getattr(value, "__name__", None))
def test_a_careless_site_is_found_out_at_home(
    broken: Callable[[Patch], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    assert not CHECKS[name].find().passed
