"""Rows of a ledger, each sealed with the hash of the one before, and the witness of the last one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from fedgraft.common.base.errors import InputError, LedgerError
from fedgraft.common.base.files import canonical_json, read_json, write_json
from fedgraft.common.privacy.accountant import ORDERS, Event, Unit

Release = Literal["train", "metrics", "sums", "settled"]
"""What leaves in exchange for a charge; each kind is charged once per job and round.

What is settled is assumed to have left: people at the site decided so after records were lost.
"""


@dataclass(frozen=True)
class Facts:
    """What a charge was for: what is protected, of how many patients, and the digest of the model that asked."""

    unit: Unit
    patients: int
    model: str
    release: Release = "train"


@dataclass(frozen=True)
class Row:
    """One charge. `cost` is its Renyi divergence at `ORDERS` as little-endian doubles; `at` is UTC."""

    seq: int
    job: str
    round: int
    event: Event
    facts: Facts
    cost: bytes
    at: str
    previous: str
    hash: str = ""

    def seal(self) -> str:
        """SHA-256 of all the row says and of the row before it, 64 hex digits."""
        return self._seal

    @cached_property
    def _seal(self) -> str:
        event, facts = self.event, self.facts
        content = [
            *(self.seq, self.job, self.round, event.noise_multiplier, event.sample_rate, event.steps),
            *(facts.unit, facts.patients, facts.model, facts.release, self.cost.hex(), self.at, self.previous),
        ]
        return hashlib.sha256(canonical_json(content)).hexdigest()


@dataclass(frozen=True)
class Genesis:
    """What a ledger is created with and never changes. The nonce tells one site's ledger from another's."""

    format: int
    delta: float
    unit: Unit
    nonce: str

    def seal(self) -> str:
        """The hash that the first row follows. It covers the orders too: sums over others mean something else."""
        content = [self.format, self.delta, self.unit, self.nonce, list(ORDERS)]
        return hashlib.sha256(canonical_json(content)).hexdigest()


@dataclass(frozen=True)
class Mark:
    """A row of the chain: its number, and its hash, which stands for all rows up to it."""

    seq: int
    hash: str


def witness_folder(state: Path, elsewhere: Path | None = None) -> Path:
    """Where the witnesses of a state folder are: where its file says, or else beside it, and never in it.

    So whoever restores the state folder from a backup does not restore them too.
    """
    return elsewhere or state.with_name(f"{state.name}.witness")


def read_witness(path: Path) -> Mark:
    """The last place that was known to be on disk; LedgerError if the file is missing or damaged."""
    try:
        content = read_json(path)
    except InputError:
        raise LedgerError(f"{path}: the witness is missing or damaged.", fix=STUCK) from None
    match content:
        case {"seq": int(seq), "hash": str(digest)} if len(content) == 2:
            return Mark(seq, digest)
    raise LedgerError(f"{path}: is no witness.", fix=STUCK)


def write_witness(path: Path, mark: Mark, *, sync: bool = True) -> None:
    """Replace the witness, all or nothing; a link to a place elsewhere stays one."""
    write_json(path.resolve(), {"seq": mark.seq, "hash": mark.hash}, private=True, sync=sync)


def check(genesis: Genesis, rows: Sequence[Row], witness: Mark) -> None:
    """LedgerError if a row was changed, removed or added by hand, or if the witness has seen more than there is.

    Rows after the witness are sound: a crash between the two files leaves one.
    """
    marks = [Mark(0, genesis.seal())]
    for row in rows:
        if row.seq != marks[-1].seq + 1 or row.previous != marks[-1].hash or row.seal() != row.hash:
            raise LedgerError(
                f"Row {row.seq} of the privacy ledger was changed, or rows before it are gone.", fix=STUCK
            )
        marks.append(Mark(row.seq, row.hash))
    if not 0 <= witness.seq < len(marks):
        raise LedgerError("The privacy ledger is older than its witness: rows are missing.", fix=STUCK)
    if witness != marks[witness.seq]:
        raise LedgerError("The privacy ledger and its witness do not belong together.", fix=STUCK)


def total(rows: Sequence[Row]) -> np.ndarray:
    """Divergence of all the rows together at `ORDERS`."""
    if not rows:
        return np.zeros(len(ORDERS))
    costs = np.frombuffer(b"".join(row.cost for row in rows), "<f8").reshape(len(rows), len(ORDERS))
    return np.asarray(costs.sum(axis=0))


STUCK = (
    "Nothing is spent until the true ledger is back; an older copy does not help, because it forgets what was spent. "
    "If it is lost, see what `fedgraft site settle` would assume."
)
