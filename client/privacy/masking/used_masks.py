"""A site's masks: which sums it lends itself to, a record of all of them on its disk, and the sealing of a reply.

A mask that is used twice gives away the difference of what it hid. Three things stand against it: every greeting draws
a nonce that all masks of the run depend on; within a run, sums are numbered, and a number not above the last one is
refused, by whichever process of the site is asked; and the number is on disk before the first masked byte exists.

The difference of two sums is one site's part if only that site has left in between. Hence the record of who took part
in which sum: `regroup` says whether the site lends itself to the same work again in another group.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.common.base.errors import RosterError, StudyError
from fedgraft.common.base.files import make_folder, read_json
from fedgraft.common.config.config_files import describe
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.secure_aggregation.mask_keys import Pairs, SignedRoster, verified
from fedgraft.common.secure_aggregation.masking import FEWEST

Regroup = Literal["never", "private", "always"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (study TEXT PRIMARY KEY, nonce TEXT NOT NULL, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sums (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL, nonce TEXT NOT NULL, number INTEGER NOT NULL,
    part TEXT NOT NULL, stage INTEGER NOT NULL, work INTEGER NOT NULL, exchange INTEGER NOT NULL,
    sites TEXT NOT NULL, context TEXT NOT NULL, at TEXT NOT NULL, UNIQUE (study, nonce, number, part));
"""
_WAIT_S = 30.0


class SecureAggregationSettings(BaseModel):
    """Where a site's mask key and the consortium's roster are, and the identities that it pinned at onboarding.

    `key`: X25519 private key in PEM, readable by its owner alone. `roster`: the signed mask keys of all sites. Public
    `identities` in PEM by site: that of the SuperNode, or Ed25519. `fewest` sites must take part in a sum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Path
    roster: Path
    identities: dict[str, str]
    fewest: Annotated[int, Field(ge=FEWEST)] = FEWEST
    regroup: Regroup = "private"
    """Mask the same work again after a drop-out: never, only if it has the noise of privacy in it, or always."""


@dataclass(frozen=True)
class Occasion:
    """What a sum is for: two with equal occasions are about the same work."""

    part: str
    stage: int
    work: bool


def read_pairs(site: str, settings: SecureAggregationSettings) -> Pairs:
    """The site's half of all pairs' secrets. RosterError if its key or the roster cannot be used."""
    try:
        key = load_pem_private_key(settings.key.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        key = None
    if not isinstance(key, X25519PrivateKey):
        raise RosterError(f"{settings.key}: is no X25519 private key in PEM.", fix="Join the consortium again.")
    if settings.key.stat().st_mode & 0o077:
        raise RosterError(f"{settings.key}: others can read this key.", fix=f"chmod 600 {settings.key}")
    try:
        roster = SignedRoster.model_validate(read_json(settings.roster))
    except ValidationError as error:
        raise StudyError(str(settings.roster), describe(error)) from None
    return Pairs(site, key, verified(roster.entries, settings.identities))


class MaskBook:
    """All sums that a site has lent itself to, on its disk. Safe for several processes; holds no lock between calls."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def greet(self, study: str) -> str:
        """A fresh nonce for a run of `study`; instructions under an earlier one are refused from now on."""
        nonce = secrets.token_hex(16)
        with self._connected() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, 0)", (study, nonce))
        return nonce

    def knows(self, study: str) -> bool:
        """Whether the site was ever greeted for this study, as far as this file knows."""
        with self._connected() as db:
            return db.execute("SELECT 1 FROM runs WHERE study = ?", (study,)).fetchone() is not None

    def check(self, study: str, nonce: str, number: int) -> None:
        """Raise Refused unless `number` can still be used under `nonce`."""
        with self._connected() as db:
            _check(db, study, nonce, number)

    def groups(self, study: str, part: str) -> set[tuple[str, ...]]:
        """All groups of sites in which the site has masked this part of the study before, in whatever stage."""
        with self._connected() as db:
            return _groups(db, study, part)

    def use(
        self,
        study: str,
        nonce: str,
        number: int,
        exchange: int,
        parts: Mapping[Occasion, tuple[list[str], str]],
        only: Collection[str] = (),
    ) -> None:
        """Put on disk that `number` is now used for these parts, each with its group and context.

        Raises Refused if it was used before, or if a part that keeps to `only` one group was masked in another since
        the site looked: work takes its time, and another process of the site may have been asked meanwhile.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        with self._connected() as db:
            db.execute("BEGIN IMMEDIATE")
            _check(db, study, nonce, number)
            for o, (sites, _) in parts.items():
                if o.part in only and not _groups(db, study, o.part) <= {tuple(sites)}:
                    raise Refused(Code.NOT_SECURE, "the site has masked this part in another group meanwhile")
            db.execute("UPDATE runs SET number = ? WHERE study = ?", (number, study))
            for o, (sites, context) in parts.items():
                row = (study, nonce, number, o.part, o.stage, o.work, exchange, "\n".join(sites), context, at)
                db.execute("INSERT INTO sums VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def contexts(self) -> frozenset[str]:
        """The digests of all that the site has masked for."""
        with self._connected() as db:
            return frozenset(context for (context,) in db.execute("SELECT context FROM sums"))

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        make_folder(self._path.parent)
        os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600))
        with closing(sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = EXTRA")
            db.executescript(_SCHEMA)
            with db:
                yield db


def _groups(db: sqlite3.Connection, study: str, part: str) -> set[tuple[str, ...]]:
    rows = db.execute("SELECT DISTINCT sites FROM sums WHERE study = ? AND part = ?", (study, part)).fetchall()
    return {tuple(sites.split("\n")) for (sites,) in rows}


def _check(db: sqlite3.Connection, study: str, nonce: str, number: int) -> None:
    row = db.execute("SELECT nonce, number FROM runs WHERE study = ?", (study,)).fetchone()
    if row is None or row[0] != nonce or number <= row[1]:
        raise Refused(Code.MASK_REUSED, f"sum {number} of a run was masked before, or another run has begun since")
