"""The SQLite file of a ledger: its tables, rows in and out, and whether what it holds is sound."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedgraft.client.privacy.ledger.hash_chain import STUCK, Facts, Genesis, Mark, Row, check
from fedgraft.client.privacy.ledger.spending import Account
from fedgraft.common.base.errors import LedgerError
from fedgraft.common.privacy.accountant import Event

FORMAT = 1
_LOCK_TIMEOUT_S = 60.0
SCHEMA = """
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


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that never makes a file, and whose commits survive a loss of power; open work is rolled back."""
    try:
        target = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(target, _LOCK_TIMEOUT_S, isolation_level=None, uri=True)) as db:
            db.execute("PRAGMA synchronous=EXTRA")
            yield db
    except (sqlite3.Error, OverflowError, ValueError, TypeError, AttributeError) as error:
        raise LedgerError(f"{path}: the ledger cannot be used: {error}.", fix=STUCK) from None


def plain(event: Event) -> Event:
    """The event as it will be read back, because its hash is taken over the text of its numbers."""
    return Event(float(event.noise_multiplier), float(event.sample_rate), int(event.steps))


def next_row(genesis: Genesis, rows: tuple[Row, ...], row: Row) -> Row:
    """`row` as the one after `rows`: numbered, linked and sealed."""
    previous = rows[-1].hash if rows else genesis.seal()
    linked = replace(row, seq=len(rows) + 1, previous=previous)
    return replace(linked, hash=linked.seal())


def insert(db: sqlite3.Connection, row: Row) -> None:
    """Add a row that is sealed already."""
    event, facts = row.event, row.facts
    values = (
        *(row.seq, row.job, row.round, event.noise_multiplier, event.sample_rate, event.steps),
        *(facts.unit, facts.patients, facts.model, facts.release, row.cost, row.at, row.previous, row.hash),
    )
    db.execute(f"INSERT INTO charges VALUES ({', '.join('?' * len(values))})", values)


@lru_cache(maxsize=1 << 14, typed=True)
def _row(*values: Any) -> Row:
    """A row of the table. All are read whenever the ledger is; one that says the same to the letter is sealed once.

    `typed`, since 1 and 1.0 are equal, and not the same in a seal.
    """
    seq, job, number, noise_multiplier, q, steps, unit, patients, model, release, cost, at, previous, digest = values
    facts = Facts(unit, patients, model, release)
    return Row(seq, job, number, Event(noise_multiplier, q, steps), facts, cost, at, previous, digest)


def now() -> str:
    """The moment in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def account_of(db: sqlite3.Connection, job: str | None = None) -> Account:
    """What the rows say that one study has spent, or all, without a look at their chain."""
    delta, unit = db.execute("SELECT delta, unit FROM site").fetchone()
    asked = (
        "SELECT job, sigma, q, SUM(steps) FROM charges WHERE ? IN (job, '') GROUP BY job, sigma, q ORDER BY job, sigma"
    )
    spent: dict[str, tuple[Event, ...]] = {}
    for name, *event in db.execute(asked, (job or "",)):
        spent[name] = (*spent.get(name, ()), Event(*event))
    return Account(delta, unit, spent)


def genesis_of(path: Path, db: sqlite3.Connection) -> Genesis:
    """What the ledger was made with; LedgerError if it is none of this version."""
    sites = db.execute("SELECT format, delta, unit, nonce FROM site").fetchall()
    if len(sites) != 1 or sites[0][0] != FORMAT:
        raise LedgerError(f"{path}: is not a ledger of this version.", fix=STUCK)
    return Genesis(*sites[0])


def sound(path: Path, db: sqlite3.Connection, witness: Mark | None = None) -> tuple[Genesis, tuple[Row, ...]]:
    """A ledger's content, its chain checked as a whole, and against the witness if one is given."""
    genesis = genesis_of(path, db)
    rows = tuple(_row(*values) for values in db.execute("SELECT * FROM charges ORDER BY seq"))
    check(genesis, rows, witness or Mark(0, genesis.seal()))
    return genesis, rows
