"""The site's ledger of privacy: one SQLite file over all studies, charged before anything is computed.

A second file, the witness, remembers the last row; a ledger that lost rows since is not used. Put it where whoever
restores backups of the first does not restore it too. Beside the witness stands what every study has spent, so that
people can settle what was lost.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import sqlite3
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from fedgraft.client.privacy.ledger.hash_chain import (
    STUCK,
    Facts,
    Genesis,
    Mark,
    Row,
    read_witness,
    total,
    write_witness,
)
from fedgraft.client.privacy.ledger.ledger_file import (
    FORMAT,
    SCHEMA,
    account_of,
    connected,
    genesis_of,
    insert,
    next_row,
    now,
    plain,
    sound,
)
from fedgraft.client.privacy.ledger.spending import Account, Spending
from fedgraft.common.base.errors import InputError, LedgerError
from fedgraft.common.base.files import make_folder, read_json, write_json
from fedgraft.common.privacy.accountant import (
    Event,
    Spend,
    Unit,
    aggregate,
    epsilon_of,
    rdp,
)

_REFUSE = (
    "INSERT INTO refusals VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE"
    " SET asked = excluded.asked, at = excluded.at, count = count + 1"
)


class Denial(StrEnum):
    """Why nothing was charged: constant words, which may leave the site."""

    BAD_EVENT = "bad_event"
    UNIT = "unit"
    REPLAY = "replay"
    JOB_BUDGET = "job_budget"
    LIFETIME_BUDGET = "lifetime_budget"
    RELEASE_BUDGET = "release_budget"


class ChargeRefused(Exception):
    """Nothing was charged, so nothing may be computed. `reason` says why."""

    def __init__(self, reason: Denial) -> None:
        super().__init__(reason.value)
        self.reason = reason


class AlreadyCharged(Exception):
    """This very charge is on record from an earlier attempt. Only the reply of then may be sent, nothing anew."""

    def __init__(self, seq: int) -> None:
        super().__init__(seq)
        self.seq = seq


@dataclass(frozen=True)
class Caps:
    """The most that one study (a job) may cost, and all releases of the charge's kind in all studies."""

    job: float
    release: float = math.inf


@dataclass(frozen=True)
class RefusedCharge:
    """A request that was turned down, and how often; `asked` is the event as text."""

    job: str
    round: int
    reason: Denial
    asked: str
    at: str
    count: int


class Ledger:
    """What a site's cohort has spent. Safe for several processes at once; holds no lock between calls."""

    def __init__(self, path: Path, witness_path: Path, epsilon_max: float, delta: float | None = None) -> None:
        """Open an existing ledger. LedgerError if it cannot be trusted, or was not made with this `delta`."""
        self._path = path
        self._witness_path = witness_path
        self._epsilon_max = epsilon_max
        genesis, _ = self._read()
        self.delta = genesis.delta
        self.unit: Unit = genesis.unit
        if delta is not None and delta != self.delta:
            raise LedgerError(f"{path}: was made with delta {self.delta:g}, not {delta:g}; a site keeps its first.")

    @classmethod
    def create(cls, path: Path, witness_path: Path, epsilon_max: float, delta: float, unit: Unit = "patient") -> Ledger:
        """The first ledger of a site. LedgerError if either file exists: a site has one ledger in its life."""
        if path.exists() or witness_path.exists():
            raise LedgerError(f"{path}: this site has, or had, a ledger already.", fix=STUCK)
        if not 0 < delta < 1:
            raise LedgerError(f"{path}: delta must lie between 0 and 1.")
        genesis = Genesis(FORMAT, float(delta), unit, secrets.token_hex(16))
        make_folder(path.parent)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with connected(path) as db:
            db.executescript(SCHEMA)
            values = (genesis.format, genesis.delta, genesis.unit, genesis.nonce)
            db.execute("INSERT INTO site VALUES (?, ?, ?, ?)", values)
        write_account(witness_path, Account(genesis.delta, unit, {}))
        write_witness(witness_path, Mark(0, genesis.seal()))
        return cls(path, witness_path, epsilon_max, delta)

    def charge(self, job: str, round_: int, event: Event, facts: Facts, caps: Caps) -> Row:
        """Put `event` on record, on disk before this returns; only then may it be computed.

        Raises ChargeRefused if that would exceed `caps` or the site's lifetime, AlreadyCharged if it was charged
        before, LedgerError if the ledger cannot be trusted or written.
        """
        cost = rdp([event])
        with connected(self._path) as db:
            db.execute("BEGIN IMMEDIATE")
            genesis, rows = self._trusted(db, read_witness(self._witness_path))
            earlier = [r for r in rows if (r.job, r.round, r.facts.release) == (job, round_, facts.release)]
            # How many patients there are by now is no part of it: who asks again would learn that one has come or gone.
            same = earlier and replace(facts, patients=earlier[0].facts.patients) == earlier[0].facts
            again = bool(same) and earlier[0].event == event
            reason = Denial.REPLAY if earlier else self._denial(job, cost, facts, rows, caps)
            if reason is None:
                row = next_row(genesis, rows, Row(0, job, round_, plain(event), facts, cost.tobytes(), now(), ""))
                insert(db, row)
            elif not again:
                db.execute(_REFUSE, (job, round_, reason.value, repr(event), now()))
            db.execute("COMMIT")
        self._bear_witness()
        if again:
            raise AlreadyCharged(earlier[0].seq)
        if reason is not None:
            raise ChargeRefused(reason)
        return row

    def spent(self, job: str | None = None) -> Spend:
        """What one study (a job), or all together, have spent."""
        rows = [row for row in self.rows() if job in (None, row.job)]
        epsilon = epsilon_of(total(rows), self.delta)
        return Spend(epsilon, self.delta, self.unit, steps=sum(row.event.steps for row in rows))

    def events(self, job: str | None = None) -> tuple[Event, ...]:
        """What was released, equal events together: for the tight accountant, or to choose noise for what is left."""
        return aggregate([row.event for row in self.rows() if job in (None, row.job)])

    def rows(self) -> tuple[Row, ...]:
        """Every charge ever made, in order; LedgerError if they cannot be trusted."""
        return self._read()[1]

    def refusals(self) -> tuple[RefusedCharge, ...]:
        """What was asked and turned down. It costs nothing, so these rows are not sealed."""
        with connected(self._path) as db:
            found = db.execute(
                "SELECT job, round, reason, asked, at, count FROM refusals ORDER BY at, rowid"
            ).fetchall()
        return tuple(RefusedCharge(job, number, Denial(why), *rest) for job, number, why, *rest in found)

    def verify(self) -> int:
        """Check everything, the recorded costs against the events too; the number of rows, or LedgerError."""
        with connected(self._path) as db:
            if db.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise LedgerError(f"{self._path}: the file is damaged.", fix=STUCK)
        rows = self.rows()
        if not np.allclose(total(rows), rdp([row.event for row in rows]), rtol=1e-9, atol=1e-12):
            raise LedgerError(f"{self._path}: the recorded costs are not those of its events.", fix=STUCK)
        return len(rows)

    @classmethod
    def settle(cls, path: Path, witness_path: Path, assumed: Spending, words: str) -> None:
        """Put on record what people assume to have been spent, whatever the caps, and let the witness follow.

        `words` says who decided and why; its digest stands in the rows. LedgerError if the ledger is damaged in itself.
        """
        note = hashlib.sha256(words.encode()).hexdigest()
        with connected(path) as db:
            db.execute("BEGIN IMMEDIATE")
            genesis, rows = sound(path, db)
            for job, events in assumed.items():
                for event in events:
                    facts = Facts(genesis.unit, 0, note, "settled")
                    number = sum((row.job, row.facts.release) == (job, "settled") for row in rows)
                    cost = rdp([event]).tobytes()
                    row = next_row(genesis, rows, Row(0, job, number, plain(event), facts, cost, now(), ""))
                    insert(db, row)
                    rows = (*rows, row)
            write_account(witness_path, account_of(db))
            db.execute("COMMIT")
        write_witness(witness_path, Mark(len(rows), rows[-1].hash if rows else genesis.seal()))

    def _denial(self, job: str, cost: np.ndarray, facts: Facts, rows: tuple[Row, ...], caps: Caps) -> Denial | None:
        if not np.isfinite(epsilon_of(cost, self.delta)):
            return Denial.BAD_EVENT
        # Noise that hides a patient hides each of the patient's images too, but not the other way round.
        if facts.unit not in (self.unit, "patient"):
            return Denial.UNIT
        # Written as "not within", because a limit that is no number must refuse.
        if not epsilon_of(total(rows) + cost, self.delta) <= self._epsilon_max:
            return Denial.LIFETIME_BUDGET
        of_job = total([row for row in rows if row.job == job])
        if not epsilon_of(of_job + cost, self.delta) <= caps.job:
            return Denial.JOB_BUDGET
        of_kind = total([row for row in rows if row.facts.release == facts.release])
        return None if epsilon_of(of_kind + cost, self.delta) <= caps.release else Denial.RELEASE_BUDGET

    def _read(self) -> tuple[Genesis, tuple[Row, ...]]:
        # The witness first: rows are added before it follows, so in this order it can never seem to be ahead.
        witness = read_witness(self._witness_path)
        with connected(self._path) as db:
            db.execute("BEGIN")
            return self._trusted(db, witness)

    def _trusted(self, db: sqlite3.Connection, witness: Mark) -> tuple[Genesis, tuple[Row, ...]]:
        """The ledger's content inside a transaction, its chain checked as a whole."""
        return sound(self._path, db, witness)

    def _bear_witness(self) -> None:
        """Let the witness follow. Under the write lock, or a slower process could set it back."""
        with connected(self._path) as db:
            db.execute("BEGIN IMMEDIATE")
            last = db.execute("SELECT seq, hash FROM charges ORDER BY seq DESC LIMIT 1").fetchone()
            if last is not None and last[0] > read_witness(self._witness_path).seq:
                write_account(self._witness_path, account_of(db))
                write_witness(self._witness_path, Mark(*last))


def ledger_mark(path: Path, job: str) -> tuple[Mark, Account]:
    """The ledger's last row and what one study has spent; its chain is not looked at. LedgerError if it is damaged."""
    with connected(path) as db:
        db.execute("BEGIN")
        genesis = genesis_of(path, db)
        last = db.execute("SELECT seq, hash FROM charges ORDER BY seq DESC LIMIT 1").fetchone()
        return Mark(*last) if last is not None else Mark(0, genesis.seal()), account_of(db, job)


def salvage(path: Path) -> tuple[Account, bool]:
    """What a ledger says that may not be trusted, and whether it is sound in itself. LedgerError if it says nothing."""
    with connected(path) as db:
        db.execute("BEGIN")
        account = account_of(db)
        try:
            sound(path, db)
        except LedgerError:
            return account, False
        return account, True


def read_account(witness_path: Path) -> Account | None:
    """What the studies had spent when the witness was last written; None if nobody knows."""
    try:
        return Account.of(read_json(_beside(witness_path)))
    except (InputError, ValueError):
        return None


def write_account(witness_path: Path, account: Account) -> None:
    """Say beside the witness what the studies have spent."""
    write_json(_beside(witness_path), account.content(), private=True)


def _beside(witness_path: Path) -> Path:
    return witness_path.resolve().with_suffix(".spent.json")
