"""The ledger keeps its promises: never above the cap, never behind what was acknowledged, never from a wrong file."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fedgraft.client.privacy.ledger import hash_chain, ledger_file
from fedgraft.client.privacy.ledger import ledger as module
from fedgraft.client.privacy.ledger.hash_chain import (
    Facts,
    Genesis,
    Mark,
    Row,
    write_witness,
)
from fedgraft.client.privacy.ledger.ledger import (
    AlreadyCharged,
    Caps,
    ChargeRefused,
    Denial,
    Ledger,
)
from fedgraft.common.base.errors import LedgerError
from fedgraft.common.privacy.accountant import Event, epsilon, rdp

DELTA = 1e-3
FACTS = Facts("patient", 600, "a" * 64)
SMALL = Event(4.0, 0.1, 10)
POOL = (SMALL, Event(6.0, 0.1, 10), Event(3.0, 0.1, 5))


class Files:
    """A ledger's two files, in different folders."""

    def __init__(self, root: Path) -> None:
        self.ledger = root / "state" / "ledger.sqlite"
        self.witness = root / "elsewhere" / "witness.json"

    def create(self, cap: float = 8.0) -> Ledger:
        return Ledger.create(self.ledger, self.witness, cap, DELTA)

    def open(self, cap: float = 8.0) -> Ledger:
        return Ledger(self.ledger, self.witness, cap, DELTA)

    def run(self, statement: str) -> None:
        with closing(sqlite3.connect(self.ledger)) as db:
            db.execute(statement)
            db.commit()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def refused(ledger: Ledger, job: str, round_: int, event: Event = SMALL, epsilon_per_study: float = 8.0) -> Denial:
    with pytest.raises(ChargeRefused) as caught:
        ledger.charge(job, round_, event, FACTS, Caps(epsilon_per_study))
    return caught.value.reason


def test_charges_add_up_to_what_one_run_would_cost(files: Files) -> None:
    ledger = files.create()
    for round_ in range(4):
        ledger = files.open()  # as after a restart
        ledger.charge("a", round_, Event(1.5, 0.1, 15), FACTS, Caps(8.0))
    spent = ledger.spent()
    assert spent.epsilon == pytest.approx(epsilon([Event(1.5, 0.1, 60)], DELTA), abs=1e-9)
    assert (spent.steps, spent.delta, spent.unit, spent.relation) == (60, DELTA, "patient", "add/remove")
    assert ledger.events() == (Event(1.5, 0.1, 60),)
    assert ledger.verify() == 4


def test_a_charge_is_on_disk_when_it_returns(files: Files) -> None:
    row = files.create().charge("a", 1, SMALL, FACTS, Caps(8.0))
    with closing(sqlite3.connect(files.ledger)) as db:
        assert db.execute("SELECT job, round, hash FROM charges").fetchall() == [("a", 1, row.hash)]
    assert json.loads(files.witness.read_text()) == {"seq": 1, "hash": row.hash}
    assert files.ledger.stat().st_mode & 0o077 == 0
    assert files.witness.stat().st_mode & 0o077 == 0


def test_whole_numbers_are_as_good_as_decimals(files: Files) -> None:
    ledger = files.create()
    ledger.charge("a", 1, Event(4, 1, 1), FACTS, Caps(8.0))
    assert ledger.verify() == 1
    with pytest.raises(AlreadyCharged):
        ledger.charge("a", 1, Event(4.0, 1.0, 1), FACTS, Caps(8.0))


def test_the_job_and_the_lifetime_have_their_own_caps(files: Files) -> None:
    ledger = files.create(cap=4.0)
    big = Event(1.0, 0.1, 20)
    assert epsilon([big], DELTA) < 3.0 < epsilon([big, big], DELTA) < 4.0
    ledger.charge("a", 1, big, FACTS, Caps(3.0))
    assert refused(ledger, "a", 2, big, epsilon_per_study=3.0) is Denial.JOB_BUDGET
    ledger.charge("b", 1, big, FACTS, Caps(3.0))
    assert refused(ledger, "c", 1, big, epsilon_per_study=3.0) is Denial.LIFETIME_BUDGET
    ledger.charge("c", 1, SMALL, FACTS, Caps(3.0))
    assert ledger.spent("c").epsilon < ledger.spent("b").epsilon < 3.0 < ledger.spent().epsilon <= 4.0


def test_a_refusal_changes_nothing_but_the_list_of_refusals(files: Files) -> None:
    ledger = files.create()
    ledger.charge("a", 1, SMALL, FACTS, Caps(8.0))
    before = ledger.rows(), files.witness.read_bytes()
    for _ in range(3):
        assert refused(ledger, "a", 2, Event(0.01, 1.0, 10**6)) is Denial.LIFETIME_BUDGET
    assert (ledger.rows(), files.witness.read_bytes()) == before
    (line,) = ledger.refusals()
    assert (line.job, line.round, line.reason, line.count) == ("a", 2, Denial.LIFETIME_BUDGET, 3)
    assert "0.01" in line.asked


@pytest.mark.parametrize(
    "event",
    [Event(0.0), Event(math.nan), Event(-1.0), Event(1.0, 2.0), Event(1.0, 0.1, -9), Event(1.0, 0.1, 10**400)],
    ids=lambda event: str(event)[:40],
)
def test_what_is_no_event_is_refused(files: Files, event: Event) -> None:
    ledger = files.create(cap=1e12)
    assert refused(ledger, "a", 1, event, math.inf) is Denial.BAD_EVENT
    assert ledger.verify() == 0


@pytest.mark.parametrize("cap", [math.nan, -1.0, 0.0])
def test_a_cap_that_is_no_number_lets_nothing_through(files: Files, cap: float) -> None:
    assert refused(files.create(cap=cap), "a", 1) is Denial.LIFETIME_BUDGET
    assert refused(files.open(), "a", 1, epsilon_per_study=cap) is Denial.JOB_BUDGET


def test_a_repeated_round_is_recognised_and_not_charged_again(files: Files) -> None:
    ledger = files.create()
    row = ledger.charge("a", 1, SMALL, FACTS, Caps(8.0))
    ledger.charge("a", 1, SMALL, replace(FACTS, release="metrics"), Caps(8.0))
    before = ledger.rows()
    with pytest.raises(AlreadyCharged) as caught:
        files.open().charge("a", 1, SMALL, FACTS, Caps(8.0))
    assert caught.value.seq == row.seq
    assert refused(ledger, "a", 1, Event(9.0, 0.1, 10)) is Denial.REPLAY
    with pytest.raises(ChargeRefused):
        ledger.charge("a", 1, SMALL, replace(FACTS, model="b" * 64), Caps(8.0))
    assert ledger.rows() == before


def test_images_are_not_charged_where_patients_are_promised(files: Files) -> None:
    ledger = files.create()
    with pytest.raises(ChargeRefused) as caught:
        ledger.charge("a", 1, SMALL, replace(FACTS, unit="image"), Caps(8.0))
    assert caught.value.reason is Denial.UNIT


@pytest.mark.parametrize("seed", [1, 2])
def test_random_requests_never_pass_the_caps(files: Files, seed: int) -> None:
    ledger, chance = files.create(cap=2.0), random.Random(seed)
    noise_multipliers = (0.01, 0.8, 1.5, 4.0, 8.0, 1e9, math.nan)
    for number in range(200):
        event = Event(
            chance.choice(noise_multipliers), chance.choice((0.01, 0.1, 1.0)), chance.choice((1, 5, 50, 10**6))
        )
        try:
            ledger.charge(f"job{chance.randrange(12)}", number, event, FACTS, Caps(chance.choice((0.5, 1.5))))
        except ChargeRefused:
            continue
    assert ledger.rows()
    assert ledger.refusals()
    assert epsilon([row.event for row in ledger.rows()], DELTA) <= 2.0
    assert {row.reason for row in ledger.refusals()} >= {Denial.JOB_BUDGET, Denial.LIFETIME_BUDGET}
    for job in range(12):
        assert ledger.spent(f"job{job}").epsilon <= 1.5
    ledger.verify()


# --- files that cannot be trusted


def filled(files: Files, charges: int = 4) -> Ledger:
    ledger = files.create()
    for round_ in range(charges):
        ledger.charge("a", round_, SMALL, FACTS, Caps(8.0))
    return ledger


def _edit_row(files: Files) -> None:
    files.run("UPDATE charges SET steps = 1 WHERE seq = 2")


def _edit_cost(files: Files) -> None:
    files.run("UPDATE charges SET cost = zeroblob(length(cost)) WHERE seq = 2")


def _edit_type(files: Files) -> None:
    files.run("UPDATE charges SET cost = 'text' WHERE seq = 2")


def _edit_delta(files: Files) -> None:
    files.run("UPDATE site SET delta = 0.5")


def _delete_middle(files: Files) -> None:
    files.run("DELETE FROM charges WHERE seq = 2")


def _delete_first(files: Files) -> None:
    files.run("DELETE FROM charges WHERE seq = 1")


def _delete_last(files: Files) -> None:
    files.run("DELETE FROM charges WHERE seq = 4")


def _delete_all(files: Files) -> None:
    files.run("DELETE FROM charges")


def _drop_table(files: Files) -> None:
    files.run("DROP TABLE charges")


def _delete_file(files: Files) -> None:
    files.ledger.unlink()


def _empty_file(files: Files) -> None:
    files.ledger.write_bytes(b"")


def _truncate(files: Files) -> None:
    data = files.ledger.read_bytes()
    files.ledger.write_bytes(data[: len(data) // 2])


def _scribble(files: Files) -> None:
    files.ledger.write_bytes(b"x" * 8192)


def _delete_witness(files: Files) -> None:
    files.witness.unlink()


def _scribble_witness(files: Files) -> None:
    files.witness.write_text('{"seq": 0}')


def _wrong_witness(files: Files) -> None:
    write_witness(files.witness, Mark(2, "0" * 64))


def _negative_witness(files: Files) -> None:
    write_witness(files.witness, Mark(-1, json.loads(files.witness.read_text())["hash"]))


def _another_sites_ledger(files: Files) -> None:
    other = Files(files.ledger.parent.parent / "other")
    filled(other)
    shutil.copy(other.ledger, files.ledger)


TAMPERINGS: list[Callable[[Files], None]] = [
    *(_edit_row, _edit_cost, _edit_type, _edit_delta, _delete_middle, _delete_first, _delete_last, _delete_all),
    *(_drop_table, _delete_file, _empty_file, _truncate, _scribble),
    *(_delete_witness, _scribble_witness, _wrong_witness, _negative_witness, _another_sites_ledger),
]


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__.strip("_"))
def test_a_ledger_that_was_tampered_with_pays_nothing(files: Files, tamper: Callable[[Files], None]) -> None:
    ledger = filled(files)
    tamper(files)
    for use in (files.open, ledger.spent, ledger.rows, ledger.verify):
        with pytest.raises(LedgerError):
            use()
    with pytest.raises(LedgerError):
        ledger.charge("b", 1, SMALL, FACTS, Caps(8.0))
    with pytest.raises(LedgerError):
        files.create()


def test_an_older_copy_is_refused(files: Files, tmp_path: Path) -> None:
    ledger = filled(files, 2)
    shutil.copy(files.ledger, tmp_path / "backup")
    row = ledger.charge("a", 9, SMALL, FACTS, Caps(8.0))
    shutil.copy(tmp_path / "backup", files.ledger)
    with pytest.raises(LedgerError, match="older"):
        files.open()
    with pytest.raises(LedgerError, match="older"):
        ledger.charge("a", 9, SMALL, FACTS, Caps(8.0))
    assert json.loads(files.witness.read_text()) == {"seq": row.seq, "hash": row.hash}


def test_a_row_with_a_wrong_cost_is_found_even_if_its_chain_is_right(files: Files) -> None:
    ledger = filled(files, 1)
    genesis, rows = ledger._read()
    free = rdp([SMALL]) * 0
    row = ledger_file.next_row(genesis, rows, Row(0, "a", 7, SMALL, FACTS, free.tobytes(), ledger_file.now(), ""))
    with ledger_file.connected(files.ledger) as db:
        ledger_file.insert(db, row)
    assert len(ledger.rows()) == 2
    with pytest.raises(LedgerError, match="recorded costs"):
        ledger.verify()


def test_a_ledger_is_created_once_and_keeps_its_delta(files: Files) -> None:
    with pytest.raises(LedgerError):
        files.open()
    assert not files.ledger.exists()
    files.create()
    with pytest.raises(LedgerError, match="already"):
        files.create()
    with pytest.raises(LedgerError, match="keeps its first"):
        Ledger(files.ledger, files.witness, 8.0, 1e-5)
    assert Ledger(files.ledger, files.witness, 8.0).delta == DELTA


# --- crashes


def test_a_crash_before_the_witness_followed_costs_nothing_more(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = filled(files, 2)

    def crash(path: Path, mark: Mark) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(module, "write_witness", crash)
        with pytest.raises(OSError, match="space"):
            ledger.charge("a", 5, SMALL, FACTS, Caps(8.0))
    assert json.loads(files.witness.read_text())["seq"] == 2
    with pytest.raises(AlreadyCharged):
        files.open().charge("a", 5, SMALL, FACTS, Caps(8.0))
    assert json.loads(files.witness.read_text())["seq"] == 3
    assert ledger.verify() == 3


def _charge_forever(files: Files, cap: float, acknowledged: Path) -> None:
    """What a killed process does: each charge that returned is written down, in a file that outlives it."""
    ledger, chance = files.open(cap), random.Random(os.getpid())
    with acknowledged.open("ab", buffering=0) as out:
        for round_ in range(10**6):
            job = f"{os.getpid()}-{round_ % 2}"
            try:
                ledger.charge(job, round_, chance.choice(POOL), FACTS, Caps(cap))
            except ChargeRefused:
                return
            out.write(f"{job} {round_}\n".encode())


def _until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)


def _kill_writers(files: Files, kills: int, cap: float) -> None:
    files.create(cap)
    rdp(POOL)  # what is computed before the fork need not be computed in every process
    acknowledged = files.witness.with_name("acknowledged")
    acknowledged.touch()
    context, chance = multiprocessing.get_context("fork"), random.Random(7)

    def start() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_charge_forever, args=(files, cap, acknowledged))
        process.start()
        return process

    writers = [start(), start()]
    for number in range(kills):
        _until(lambda least=number: acknowledged.read_bytes().count(b"\n") > least)  # however busy the machine is
        time.sleep(chance.uniform(0.0, 0.2))
        victim = chance.randrange(2)
        assert writers[victim].pid is not None
        os.kill(writers[victim].pid, signal.SIGKILL)
        writers[victim].join()
        writers[victim] = start()
    time.sleep(0.2)
    for writer in writers:
        writer.kill()
        writer.join()
    ledger = files.open(cap)
    recorded = {f"{row.job} {row.round}" for row in ledger.rows()}
    told = acknowledged.read_text().splitlines()
    assert len(told) >= kills
    assert len(told) == len(set(told))
    assert set(told) <= recorded
    assert len(recorded) - len(told) <= kills + 2  # each death loses at most the one charge it was at
    assert ledger.verify() == len(recorded)
    assert epsilon([row.event for row in ledger.rows()], DELTA) <= cap


@pytest.mark.slow
def test_killed_writers_lose_nothing_that_was_acknowledged(files: Files) -> None:
    _kill_writers(files, kills=4, cap=100.0)


@pytest.mark.slow
def test_many_killed_writers_lose_nothing_that_was_acknowledged(files: Files) -> None:
    _kill_writers(files, kills=20, cap=1000.0)


def test_two_processes_at_once_stop_at_the_cap_together(files: Files) -> None:
    cap = epsilon([Event(3.0, 0.1, 100)], DELTA)
    files.create(cap)
    rdp(POOL)
    context = multiprocessing.get_context("fork")
    told = files.witness.with_name("acknowledged")
    writers = [context.Process(target=_charge_forever, args=(files, cap, told)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(600)
        assert writer.exitcode == 0
    ledger = files.open(cap)
    assert ledger.verify() == len(told.read_text().splitlines()) > 10
    assert ledger.spent().epsilon <= cap
    # It stopped at the cap, not long before it.
    dearest = max(POOL, key=lambda event: epsilon([event], DELTA))
    assert epsilon([*(row.event for row in ledger.rows()), dearest, dearest], DELTA) > cap


def test_a_charge_after_a_thousand_others_is_quick(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.create(1e6)
    with ledger_file.connected(files.ledger) as db:
        genesis = Genesis(*db.execute("SELECT format, delta, unit, nonce FROM site").fetchone())
        rows: tuple[Row, ...] = ()
        db.execute("BEGIN IMMEDIATE")
        for number in range(1000):
            event = POOL[number % 3]
            blank = Row(0, f"job{number % 7}", number, event, FACTS, rdp([event]).tobytes(), ledger_file.now(), "")
            rows = (*rows, ledger_file.next_row(genesis, rows, blank))
            ledger_file.insert(db, rows[-1])
        db.execute("COMMIT")
    write_witness(files.witness, Mark(rows[-1].seq, rows[-1].hash))
    ledger = files.open(1e6)
    seconds = []
    for number in range(5):
        began = time.process_time()
        ledger.charge("late", number, SMALL, FACTS, Caps(1e6))
        seconds.append(time.process_time() - began)
    with capsys.disabled():
        print(f"\na charge after 1,000 others: {min(seconds):.3f} to {max(seconds):.3f} s")
    assert min(seconds) < 3  # of the processor; ten times what it should take
    assert ledger.verify() == 1005


@pytest.mark.parametrize("change", ["steps = 11", "at = at || ' '", "patients = 601", "cost = zeroblob(8)"])
def test_a_row_is_sealed_once_and_compared_at_every_look(files: Files, monkeypatch: pytest.MonkeyPatch, change) -> None:
    ledger = files.create(cap=50.0)
    for number in range(6):
        ledger.charge("a", number, SMALL, FACTS, Caps(50.0))
    rows, sealed, real = ledger.rows(), [], hash_chain.canonical_json
    monkeypatch.setattr(hash_chain, "canonical_json", lambda content: sealed.append(content) or real(content))
    assert ledger.rows() == rows
    assert len(files.open(cap=50.0).rows()) == 6
    assert max(len(content) for content in sealed) == 5, "only what the ledger was made with is sealed again"
    column = change.partition(" ")[0]
    files.run("CREATE TABLE kept AS SELECT * FROM charges")  # behind its back, in the middle, and back again
    files.run(f"UPDATE charges SET {change} WHERE seq = 3")
    with pytest.raises(LedgerError, match="Row 3 "):
        ledger.rows()
    files.run(f"UPDATE charges SET {column} = (SELECT {column} FROM kept WHERE seq = 3) WHERE seq = 3")
    assert ledger.rows() == rows
