"""The site's ledger of privacy: one SQLite file over all studies, charged before anything is computed.

A second file, the witness, remembers the last row; a ledger that lost rows since is not used. Put it where whoever
restores backups of the first does not restore it too: if both go back in time together, nobody can tell.
"""

from __future__ import annotations

import math
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.client.privacy.ledger.hash_chain import (
    STUCK,
    Facts,
    Genesis,
    Mark,
    Row,
    check,
    read_witness,
    total,
    write_witness,
)
from fedgraft.common.base.errors import LedgerError
from fedgraft.common.privacy.accountant import (
    Event,
    Spend,
    Unit,
    aggregate,
    epsilon_of,
    rdp,
)

_FORMAT = 1
_LOCK_TIMEOUT_S = 60.0
_SCHEMA = """
CREATE TABLE site (format INTEGER NOT NULL, delta REAL NOT NULL, unit TEXT NOT NULL, nonce TEXT NOT NULL);
CREATE TABLE charges (
  seq INTEGER PRIMARY KEY, job TEXT NOT NULL, round INTEGER NOT NULL,
  sigma REAL NOT NULL, q REAL NOT NULL, steps INTEGER NOT NULL,
  unit TEXT NOT NULL, patients INTEGER NOT NULL, model TEXT NOT NULL, release TEXT NOT NULL,
  cost BLOB NOT NULL, at TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL,
  UNIQUE (job, round, release)
);
CREATE TABLE refusals (
  job TEXT NOT NULL, round INTEGER NOT NULL, reason TEXT NOT NULL, asked TEXT NOT NULL, at TEXT NOT NULL,
  count INTEGER NOT NULL, PRIMARY KEY (job, round, reason)
);
"""
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
        genesis = Genesis(_FORMAT, float(delta), unit, secrets.token_hex(16))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with _connected(path) as db:
            db.executescript(_SCHEMA)
            values = (genesis.format, genesis.delta, genesis.unit, genesis.nonce)
            db.execute("INSERT INTO site VALUES (?, ?, ?, ?)", values)
        write_witness(witness_path, Mark(0, genesis.seal()))
        return cls(path, witness_path, epsilon_max, delta)

    def charge(self, job: str, round_: int, event: Event, facts: Facts, caps: Caps) -> Row:
        """Put `event` on record, on disk before this returns; only then may it be computed.

        Raises ChargeRefused if that would exceed `caps` or the site's lifetime, AlreadyCharged if it was charged
        before, LedgerError if the ledger cannot be trusted or written.
        """
        cost = rdp([event])
        with _connected(self._path) as db:
            db.execute("BEGIN IMMEDIATE")
            genesis, rows = self._trusted(db, read_witness(self._witness_path))
            earlier = [r for r in rows if (r.job, r.round, r.facts.release) == (job, round_, facts.release)]
            again = bool(earlier) and (earlier[0].event, earlier[0].facts) == (event, facts)
            reason = Denial.REPLAY if earlier else self._denial(job, cost, facts, rows, caps)
            if reason is None:
                row = _next(genesis, rows, Row(0, job, round_, _plain(event), facts, cost.tobytes(), _now(), ""))
                _insert(db, row)
            elif not again:
                db.execute(_REFUSE, (job, round_, reason.value, repr(event), _now()))
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
        with _connected(self._path) as db:
            found = db.execute(
                "SELECT job, round, reason, asked, at, count FROM refusals ORDER BY at, rowid"
            ).fetchall()
        return tuple(RefusedCharge(job, number, Denial(why), *rest) for job, number, why, *rest in found)

    def verify(self) -> int:
        """Check everything, the recorded costs against the events too; the number of rows, or LedgerError."""
        with _connected(self._path) as db:
            if db.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise LedgerError(f"{self._path}: the file is damaged.", fix=STUCK)
        rows = self.rows()
        if not np.allclose(total(rows), rdp([row.event for row in rows]), rtol=1e-9, atol=1e-12):
            raise LedgerError(f"{self._path}: the recorded costs are not those of its events.", fix=STUCK)
        return len(rows)

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
        with _connected(self._path) as db:
            db.execute("BEGIN")
            return self._trusted(db, witness)

    def _trusted(self, db: sqlite3.Connection, witness: Mark) -> tuple[Genesis, tuple[Row, ...]]:
        """The ledger's content inside a transaction, its chain checked as a whole."""
        sites = db.execute("SELECT format, delta, unit, nonce FROM site").fetchall()
        if len(sites) != 1 or sites[0][0] != _FORMAT:
            raise LedgerError(f"{self._path}: is not a ledger of this version.", fix=STUCK)
        genesis = Genesis(*sites[0])
        rows = tuple(_row(values) for values in db.execute("SELECT * FROM charges ORDER BY seq"))
        check(genesis, rows, witness)
        return genesis, rows

    def _bear_witness(self) -> None:
        """Let the witness follow. Under the write lock, or a slower process could set it back."""
        with _connected(self._path) as db:
            db.execute("BEGIN IMMEDIATE")
            last = db.execute("SELECT seq, hash FROM charges ORDER BY seq DESC LIMIT 1").fetchone()
            if last is not None and last[0] > read_witness(self._witness_path).seq:
                write_witness(self._witness_path, Mark(*last))


@contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that never makes a file, and whose commits survive a loss of power; open work is rolled back."""
    try:
        target = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(target, _LOCK_TIMEOUT_S, isolation_level=None, uri=True)) as db:
            db.execute("PRAGMA synchronous=EXTRA")
            yield db
    except (sqlite3.Error, OverflowError, ValueError, TypeError, AttributeError) as error:
        raise LedgerError(f"{path}: the ledger cannot be used: {error}.", fix=STUCK) from None


def _plain(event: Event) -> Event:
    """The event as it will be read back, because its hash is taken over the text of its numbers."""
    return Event(float(event.noise_multiplier), float(event.sample_rate), int(event.steps))


def _next(genesis: Genesis, rows: tuple[Row, ...], row: Row) -> Row:
    previous = rows[-1].hash if rows else genesis.seal()
    linked = replace(row, seq=len(rows) + 1, previous=previous)
    return replace(linked, hash=linked.seal())


def _insert(db: sqlite3.Connection, row: Row) -> None:
    event, facts = row.event, row.facts
    values = (
        *(row.seq, row.job, row.round, event.noise_multiplier, event.sample_rate, event.steps),
        *(facts.unit, facts.patients, facts.model, facts.release, row.cost, row.at, row.previous, row.hash),
    )
    db.execute(f"INSERT INTO charges VALUES ({', '.join('?' * len(values))})", values)


def _row(values: tuple[Any, ...]) -> Row:
    seq, job, number, noise_multiplier, q, steps, unit, patients, model, release, cost, at, previous, digest = values
    facts = Facts(unit, patients, model, release)
    return Row(seq, job, number, Event(noise_multiplier, q, steps), facts, cost, at, previous, digest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
