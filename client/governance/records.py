"""Whether a site's records agree: what one of them tells of, no other may have forgotten.

Charges, masks, progress, and the study itself are on disk before the line of the egress log that rests on them, and the
witness after it. So a record that knows less than the log, or a log that knows less than its witness, was restored from
a backup, or lost. Nothing leaves the site then, until people have settled what was lost (`settlement.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.governance.egress import FIRST, EgressEntry, EgressLog
from fedgraft.client.governance.persons.settling import removals_in
from fedgraft.client.governance.release.held_answers import HeldAnswers
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.ledger.hash_chain import Mark, Row
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.ledger.small_records import small_records
from fedgraft.client.privacy.masking.used_masks import MaskBook
from fedgraft.common.base.disk import exists, listed
from fedgraft.common.base.errors import InputError, LedgerError
from fedgraft.common.identity.person_book import PersonBook
from fedgraft.common.protocol.instructions import Code

TakenUp = Callable[[SiteConfig, str], frozenset[int]]
"""The exchanges of a study, by its digest, that the site's own record of progress has."""

SETTLE = "Restore the newest copies of all, or see what is lost: `fedgraft site settle`."
_RELEASES = ("update", "secure_aggregation")


@dataclass
class _AlreadySaid:
    """What the egress log tells of, since people last settled what was lost."""

    ledger: dict[int, str] = field(default_factory=dict)
    exchanges: dict[str, set[int]] = field(default_factory=dict)
    contexts: set[str] = field(default_factory=set)
    greeted: set[str] = field(default_factory=set)
    small: dict[str, set[str]] = field(default_factory=dict)
    refused: set[tuple[str, int]] = field(default_factory=set)
    removed: dict[str, str] = field(default_factory=dict)
    """Whom people removed from the book of persons, by the digest of its entry."""

    def add(self, entry: EgressEntry) -> None:
        """Take in the next line."""
        if entry.ledger is not None:
            self.ledger[int(entry.ledger["seq"])] = str(entry.ledger["hash"])
        for name, words in entry.known.items():
            self.small.setdefault(name, set()).update(words)
        self.removed.update({one.digest: one.removed for one in removals_in(entry.kind, entry.words)})
        if entry.kind == "greeting":
            self.greeted.add(entry.study)
        elif entry.kind == "release" and entry.words.get("decision") == "refused":
            self.refused.add((entry.study, entry.exchange))
        elif entry.kind in _RELEASES:
            self.exchanges.setdefault(entry.study, set()).add(entry.exchange)
            contexts: dict[str, Any] = entry.words.get("contexts", {})
            self.contexts.update(map(str, contexts.values()))


class Records:
    """The records of one site. Remembers how far it has read the log, so that asking again is quick."""

    def __init__(self, config: SiteConfig, home: Path, taken_up: TakenUp, log: EgressLog | None = None) -> None:
        """`home` is the folder of the site's file, in which the book of its persons lies."""
        self._config = config
        self._persons = PersonBook(home)
        self._taken_up = taken_up
        self._log = log or EgressLog(config.state, config.witness, sync=config.sync)
        self._held = Held.of(config.state, config.witness)
        self._mark, self._size = FIRST, 0
        self._hashes: dict[int, str] = {FIRST.seq: FIRST.hash}
        self._told = _AlreadySaid()
        self._closed: set[str] = set()
        self._charged: dict[str, set[int]] = {}
        """By study the exchanges that the ledger was charged for, as of the last look."""

    def demand(self, study: str) -> None:
        """Raise Refused unless all records that this study rests on agree, and it was not ended by a settlement."""
        for what in self._contradictions([study]):
            raise Refused(Code.LEDGER, f"{what} {SETTLE}")
        if study in self._closed:
            raise Refused(Code.LEDGER, "the study ended here when people settled what was lost of the site's records")

    def contradictions(self) -> tuple[str, ...]:
        """All that does not agree, in sentences for the people at the site; none, if all is well."""
        return tuple(self._contradictions(None))

    def _contradictions(self, studies: list[str] | None) -> Iterator[str]:
        elsewhere = self._config.witness
        if elsewhere is not None and not elsewhere.is_dir():
            yield f"{elsewhere}: the folder of the witness is not there; is its disk mounted?"
            return
        # In the reverse order of writing: what is read later can only know more.
        try:
            witnesses, replies = self._log.witnessed(), kept_answers(self._config.state)
            self._read_on()
        except LedgerError as error:
            yield str(error)
            return
        if forgotten := [mark.seq for mark in witnesses if self._hashes.get(mark.seq) != mark.hash]:
            old = f"{self._config.state / 'egress.jsonl'} is an older copy"
            yield f"The egress log does not have message {max(forgotten)} as its witness saw it: {old}."
        yield from self._ledger(replies)
        yield from self._masks()
        yield from self._small()
        yield from self._removed()
        known = self._told.exchanges.keys() | self._told.greeted | self._charged.keys()
        for study in known if studies is None else studies:
            yield from self._study(study)

    def _read_on(self) -> None:
        for entry, size in self._log.after(self._mark, self._size):
            self._mark, self._size = Mark(entry.seq, entry.hash), size
            self._hashes[entry.seq] = entry.hash
            if entry.kind == "settlement":
                self._told = _AlreadySaid()
                self._closed.update(map(str, entry.words["closed"]))
            self._told.add(entry)

    def _ledger(self, replies: set[tuple[str, int]]) -> Iterator[str]:
        told = self._told.ledger
        if not self._held.exists():
            if any(told):
                yield "The privacy ledger is gone, and the egress log tells of what it held."
            rows: tuple[Row, ...] = ()
        else:
            try:
                rows = self._held.open(float("inf")).rows()
            except LedgerError as error:
                yield str(error)
                return
        self._charged = {}
        for row in rows:
            if row.facts.release != "settled" and row.job not in self._closed:
                self._charged.setdefault(row.job, set()).add(row.round)
        hashes = {row.seq: row.hash for row in rows}
        if forgotten := [seq for seq, seal in told.items() if seq and hashes.get(seq) != seal]:
            yield f"The privacy ledger does not have {len(forgotten)} of the places that the egress log tells of."
        charged = {(row.job, row.round) for row in rows}
        if free := {kept for kept in replies - charged if kept[0] not in self._closed}:
            yield f"{len(free)} answers with noise are kept that the privacy ledger was never charged for."

    def _masks(self) -> Iterator[str]:
        if not self._told.contexts:
            return
        used = MaskBook(self._config.state / "masks.sqlite").contexts()
        if forgotten := self._told.contexts - used:
            yield f"The record of used masks does not have {len(forgotten)} masks that the egress log tells of."

    def _small(self) -> Iterator[str]:
        if not any(self._told.small.values()):
            return  # none can have been forgotten
        now = small_records(self._config.state)
        for name, words in self._told.small.items():
            if forgotten := words - now[name]:
                yield f"{name} does not have {len(forgotten)} entries that the egress log tells of."

    def _removed(self) -> Iterator[str]:
        """An older book would let in again whom people removed; one with more could lock out whom nobody did."""
        told = self._told.removed
        try:
            there = {one.digest: one.removed for one in self._persons.removals()}
        except InputError as error:
            if told:
                yield str(error)
            return
        for digest in told.keys() - there.keys():
            yield f"The book of persons does not have the removal of {told[digest]} that the egress log tells of."
        for digest in there.keys() - told.keys():
            yield f"The book of persons has a removal of {there[digest]} that the egress log does not tell of."

    def _study(self, study: str) -> Iterator[str]:
        done = self._told.exchanges.get(study, set()) | self._charged.get(study, set())
        if forgotten := done.difference(self._taken_up(self._config, study)):
            place = self._config.folder(study) / "progress" / f"{study[:16]}.log"
            told = f"lacks exchange {min(forgotten)}, which was answered or paid"
            yield f"The record of study {study[:12]} {told}: {place}."
        refused = {at for told, at in self._told.refused if told == study}
        if refused and (forgotten := refused - _refused(self._config, study)):
            yield f"What people refused to release of study {study[:12]}, exchange {min(forgotten)}, is not on record."
        kept = f"{self._config.state}/studies/{study}.json"
        if study in self._told.greeted and not exists(kept):
            yield f"Study {study[:12]} was taken in, and is not among the studies any more."


def _refused(config: SiteConfig, study: str) -> set[int]:
    """The exchanges whose held answers people have refused to release, as the site knows it; none if it is damaged."""
    try:
        held = HeldAnswers(config.state, study).all()
    except InputError:
        return set()
    return {one.exchange for one in held if one.decision is not None and one.decision.decision == "refused"}


def kept_answers(state: Path) -> set[tuple[str, int]]:
    """Study (its digest) and exchange of all answers with noise that are kept, and so must have been charged."""
    if not os.path.isdir(f"{state}/replies"):  # noqa: PTH112 - asked at every visit
        return set()
    found = ((path.parent.name, path.stem) for path in listed(state / "replies", "*/*.safetensors"))
    return {(study, int(number)) for study, number in found if number.isdigit()}
