"""Limits over several studies hold if they ask at the same moment: looking and taking is one step."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from fedgraft.client.privacy.guard import shown_counts as module
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.guard.study_account import StudyAccount
from fedgraft.client.privacy.ledger.hash_chain import Facts
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.ledger.ledger import (
    Caps,
    ChargeRefused,
    Denial,
    Ledger,
)
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.privacy.accountant import Event, epsilon
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.study.plan import Role
from fedgraft.common.study.study import Study
from helpers.work import MakeStudy

DELTA = 1e-3
SHOWN = Facts("patient", 600, "a" * 64, "metrics")
COUNTS = Event(8.0, 1.0, 1)
ONCE, TWICE, THRICE = (epsilon([COUNTS] * times, DELTA) for times in (1, 2, 3))


def _ask(files: tuple[Path, Path], who: int, start: Barrier, told: Path) -> None:
    ledger = Ledger(*files, 50.0, DELTA)
    start.wait(600)
    for number in range(4):
        job = f"{who}-{number}"
        try:
            ledger.charge(job, 1, COUNTS, SHOWN, Caps(8.0, (TWICE + THRICE) / 2))
        except ChargeRefused as refused:
            if refused.reason is not Denial.RELEASE_BUDGET:
                raise
        else:
            with told.open("a") as file:
                file.write(f"{job}\n")


def test_processes_at_once_stop_together_at_the_limit_of_one_kind_of_release(tmp_path: Path) -> None:
    files = (tmp_path / "ledger.sqlite", tmp_path / "witness.json")
    ledger = Ledger.create(*files, 50.0, DELTA)
    ledger.charge("other", 1, Event(1.0, 0.1, 20), Facts("patient", 600, "a" * 64), Caps(8.0, 8.0))
    context = multiprocessing.get_context("fork")
    start, told = context.Barrier(4), tmp_path / "told"
    askers = [context.Process(target=_ask, args=(files, who, start, told)) for who in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(600)
        assert asker.exitcode == 0
    shown = [row for row in ledger.rows() if row.facts.release == "metrics"]
    assert sorted(row.job for row in shown) == sorted(told.read_text().split())
    assert len(shown) == 2  # what was spent on training does not count against it


@pytest.mark.parametrize("limit", [float("nan"), -1.0, 0.0, ONCE * 0.99])
def test_a_limit_that_one_release_passes_lets_nothing_through(tmp_path: Path, limit: float) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", tmp_path / "witness.json", 50.0, DELTA)
    with pytest.raises(ChargeRefused) as caught:
        ledger.charge("a", 1, COUNTS, SHOWN, Caps(8.0, limit))
    assert caught.value.reason is Denial.RELEASE_BUDGET
    assert not ledger.rows()


def a_guard(study: Study, folder: Path, **policy: Any) -> PrivacyGuard:
    return PrivacyGuard(study, SitePolicy(**({"min_patients": 1, "epsilon_lifetime": 50.0} | policy)), folder, 600)


def test_a_study_charged_since_the_site_looked_counts(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look before the charge sees an old ledger, as it can if another process charges in between."""
    monkeypatch.setattr(StudyAccount, "spent_by_others", lambda self, *releases: iter(()))
    allowed, refusals = 0, set()
    for seed in range(5):
        guard = a_guard(make_study(seed=seed), tmp_path, metrics="noised")
        try:
            guard.charge_metrics(1, "b" * 64)
            allowed += 1
        except Refused as refused:
            refusals.add((refused.code, refused.why))
    assert refusals == {(Code.BUDGET, "release_budget")}
    events = [row.event for row in Held.of(tmp_path).open(50.0).rows()]
    assert 0 < allowed < 5
    assert len(events) == allowed
    assert epsilon(events, guard.delta) <= 1.0
    # Whoever looks at the whole ledger plans no metrics any more, and leaves no room for them.
    monkeypatch.undo()
    assert not list(a_guard(make_study(seed=9), tmp_path, metrics="noised").metrics_events())


def test_suppressed_counts_are_shown_to_no_more_studies_if_all_ask_at_once(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[Path], Any] = module.read_json
    monkeypatch.setattr(module, "read_json", lambda path: (real(path), time.sleep(0.05))[0])
    guards = [a_guard(make_study(seed=seed), tmp_path, metrics="suppressed") for seed in range(6)]

    def ask(guard: PrivacyGuard) -> bool:
        try:
            guard.admit_metrics(1)
        except Refused:
            return False
        return True

    assert ask(guards[0])
    with ThreadPoolExecutor(6) as together:
        assert sum(together.map(ask, guards[1:])) == 1
    assert not any(map(ask, guards)), "what was shown is answered from the reply that was kept, and never anew"


@pytest.mark.parametrize("kind", ["train", "metrics"])
def test_a_ledger_that_breaks_between_the_look_and_the_charge_is_told_in_one_word(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    probe = {"name": "linear_probe", "local": {"steps": 1, "private": {"noise_multiplier": 9.0, "sample_rate": 0.1}}}
    study = make_study(method=probe)
    guard, roles = a_guard(study, tmp_path, metrics="noised"), frozenset({Role.HEAD})
    guard.charge(study.plan[0], 1, roles, "b" * 64, 600)
    real = Ledger.charge

    def harmed(self: Ledger, *rest: Any) -> object:
        Held.of(tmp_path).witness.write_text("{}")
        return real(self, *rest)

    monkeypatch.setattr(Ledger, "charge", harmed)
    with pytest.raises(Refused) as caught:
        guard.charge(study.plan[0], 2, roles, "b" * 64, 600) if kind == "train" else guard.charge_metrics(2, "b" * 64)
    assert caught.value.code is Code.LEDGER
