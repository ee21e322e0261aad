"""What left a site: an append-only file in which every message stands before it is sent, each line sealed to the last.

A line names the message's tensors with shapes, types and digests, all its other words in full, and why policy let it
go. It holds no tensor: whoever has the message can be shown what the line says, but the line does not tell of patients.

It also says where the site's ledger was at that moment and what the study had spent, which never leaves: a ledger that
was restored from a backup knows less than the log. The log's own last line stands with the ledger's witness.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, assert_never

from fedgraft.client.governance.egress_files import EgressFiles
from fedgraft.client.privacy.ledger.hash_chain import STUCK, Mark
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.ledger.ledger import ledger_mark
from fedgraft.client.privacy.ledger.small_records import small_records
from fedgraft.client.privacy.ledger.witness_slots import read_slots, write_slots
from fedgraft.common.base.disk import exists
from fedgraft.common.base.errors import LedgerError
from fedgraft.common.base.files import canonical_json
from fedgraft.common.protocol.answers import SiteAnswer
from fedgraft.common.protocol.instructions import (
    Answer,
    Arrays,
    Greeting,
    MaskedUpdate,
    Refusal,
    Update,
)

Kind = Literal[
    "answer",
    "greeting",
    "update",
    "secure_aggregation",
    "refusal",
    "ping",
    "error",
    "settlement",
    "release",
    "person_removed",
]
"""What was sent. A settlement was not: it is what people decided after records were lost; nor was a release, which is
what a person decided about an answer that is held, nor that a person of the site was removed."""
DECISIONS = ("settlement", "release", "person_removed")
"""Kinds of lines that tell of no message."""

FIRST = Mark(0, "0" * 64)
"""What the first line follows."""

_FIELDS = (
    "seq",
    "at",
    "study",
    "exchange",
    "kind",
    "why",
    "tensors",
    "metrics",
    "words",
    "ledger",
    "known",
    "previous",
)
_WITNESS = "egress.witness"


@dataclass(frozen=True)
class EgressEntry:
    """One message. `tensors` and `metrics` hold (type, shape, SHA-256) by name; `words` are all the rest of it.

    `ledger` is where the site's ledger was, and what the study had spent; None if the site had none, or none that can
    be read. `known` are the site's small records then (`small_records.py`).
    """

    seq: int
    at: str
    study: str
    exchange: int
    kind: Kind
    why: str
    tensors: Mapping[str, tuple[str, tuple[int, ...], str]]
    metrics: Mapping[str, tuple[str, tuple[int, ...], str]]
    words: Mapping[str, Any]
    ledger: Mapping[str, Any] | None
    known: Mapping[str, Sequence[str]]
    previous: str
    hash: str = ""
    """SHA-256 of all that the line says and of the line before it, 64 hex digits."""


@dataclass(frozen=True)
class _Line:
    """What a line says besides its place in the log."""

    study: str
    exchange: int
    kind: Kind
    why: str
    words: Mapping[str, Any]
    tensors: Arrays = field(default_factory=dict)
    metrics: Arrays = field(default_factory=dict)


class EgressLog:
    """The file of one site. Safe for several processes at once."""

    def __init__(self, state: Path, witness: Path | None = None, *, sync: bool = True) -> None:
        """The log in a site's state folder, its witness where `witness_folder` says; made with the first line.

        Without `sync` a line survives the kill of the process, but not a loss of power: enough for a simulation.
        """
        self._files = EgressFiles(state)
        self._path = self._files.active
        self._held = Held.of(state, witness)
        self._witnesses = tuple(path.with_name(_WITNESS) for path in (self._held.witness, self._held.ledger))
        self._folders = [str(path.parent) for path in self._witnesses]
        self._paths = [str(path) for path in (*self._witnesses, self._held.ledger)]
        self._sync = sync
        self._end = (0, 0, FIRST)
        self._own: tuple[EgressEntry, bytes] | None = None
        """The line that this process has written last, and its bytes."""

    def record(self, study: str, answer: SiteAnswer | Greeting | Answer, why: str) -> None:
        """Put a message on disk as about to leave. OSError if that cannot be done, and then it must not leave."""
        self._append(_line(study, answer, why))

    def note(self, kind: Literal["ping", "error"], words: Mapping[str, Any]) -> None:
        """The same for what is not about a study: constant words alone."""
        self._append(_Line("", 0, kind, "a constant word", words))

    def decided(self, study: str, exchange: int, words: Mapping[str, Any]) -> None:
        """Put on record what a person decided about a held answer: who, what, and the answer's digest."""
        self._append(_Line(study, exchange, "release", "a person at the site decided", words))

    def removed(self, words: Mapping[str, Any]) -> None:
        """Put on record that a person is none of the site's any more: the book's whole entry."""
        self._append(_Line("", 0, "person_removed", "people at the site decided", words))

    def settle(self, words: Mapping[str, Any]) -> None:
        """Put on record what people decided about records that were lost, and take the log as it is from now on."""
        self._append(_Line("", 0, "settlement", f"decided by {words['by']}", words), unseen=True)

    def witnessed(self) -> list[Mark]:
        """The lines that were known last to be on disk; none if no line ever was. LedgerError if nobody knows.

        The second place is the ledger's folder: whoever restores the log and its witness, and not the ledger, is found.
        """
        (first, *others), (at, *places, _) = self._witnesses, self._paths
        copies = [path for path, place in zip(others, places, strict=True) if exists(place)]
        if not exists(at) and not any(self._files.sizes().values()):
            return [read_slots(path) for path in copies]
        return [read_slots(path) for path in (first, *copies)]

    def _append(self, line: _Line, *, unseen: bool = False) -> None:
        with self._files.appending() as descriptor:
            size, last = self._last(descriptor)
            if last == FIRST and (unseen or not any(path.exists() for path in self._witnesses)):
                self._bear_witness(FIRST)  # from now on the log cannot be gone
            at = datetime.now(UTC).isoformat(timespec="seconds")
            known = {name: sorted(words) for name, words in small_records(self._path.parent).items()}
            facts = _facts(last, at, line, self._ledger(line), known)
            content = canonical_json(facts)
            seal = hashlib.sha256(content).hexdigest()
            data = content[:-1] + _end(seal)
            written = os.write(descriptor, data)
            if written != len(data):
                os.ftruncate(descriptor, size)
                raise OSError(f"only {written} of {len(data)} bytes could be written")
            if self._sync:
                os.fdatasync(descriptor)
            mark = Mark(last.seq + 1, seal)
            self._own = None if line.kind in DECISIONS else (EgressEntry(**facts, hash=seal), data)
            self._end = (os.fstat(descriptor).st_ino, size + len(data), mark)
            if unseen or self._is_sound(last):
                self._bear_witness(mark)

    def _bear_witness(self, mark: Mark) -> None:
        for path, folder in zip(self._witnesses, self._folders, strict=True):
            if path is self._witnesses[0] or os.path.isdir(folder):  # noqa: PTH112 - asked at every visit
                write_slots(path, mark, sync=self._sync)

    def _is_sound(self, last: Mark) -> bool:
        """Whether the log up to its last line holds what its witnesses saw. If not, they stay as they are."""
        try:
            seen = self.witnessed()
        except LedgerError:
            return False
        if all(mark == last for mark in seen):
            return bool(seen)
        # A crash between the files leaves the witness behind.
        known = {FIRST, *(Mark(entry.seq, entry.hash) for entry in self.entries())}
        return set(seen) <= known

    def _ledger(self, line: _Line) -> dict[str, Any] | None:
        if not exists(self._paths[-1]):
            return None
        try:
            mark, account = ledger_mark(self._held.ledger, line.study)
        except LedgerError:
            if line.kind in ("update", "secure_aggregation"):
                raise
            return None  # that it is damaged is what this word may be about
        return {"seq": mark.seq, "hash": mark.hash, **account.content()}

    def entries(self) -> Iterator[EgressEntry]:
        """All messages in order, each checked against the one before; LedgerError names the first that is wrong."""
        yield from (entry for entry, _ in self.after(FIRST, 0))

    def after(self, mark: Mark, size: int) -> Iterator[tuple[EgressEntry, int]]:
        """The messages after the one of `mark`, which ends at byte `size`; each checked, with the byte it ends at."""
        if self._own is not None and self._own[0].previous == mark.hash and self._own[0].seq == mark.seq + 1:
            entry, line = self._own
            # It was sealed in this process, and these are its bytes: what reading it would say is known.
            if self._files.ends_with(line, size):
                yield entry, size + len(line)
                return
        if not (files := self._files.sizes()):
            if size:
                raise LedgerError(f"{self._path}: is gone.", fix=STUCK)
            return
        if sum(files.values()) < size:
            raise LedgerError(f"{[*files][-1]}: is shorter than it was.", fix=STUCK)
        for line in self._files.lines(size):
            if not line.endswith(b"\n"):
                return  # a message that was being written when the site was killed, and so never left
            number = mark.seq + 1
            entry = self._parsed(line, number)
            if entry.seq != number or entry.previous != mark.hash or not _is_sealed(line, entry.hash):
                raise LedgerError(f"{self._path}: line {number} was changed, or lines before it are gone.")
            mark, size = Mark(number, entry.hash), size + len(line)
            yield entry, size

    def _parsed(self, line: bytes, number: int) -> EgressEntry:
        try:
            return EgressEntry(**_frozen(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            which = f"line {number}" if number else "its last line"
            raise LedgerError(f"{self._path}: {which} is damaged.") from None

    def _last(self, descriptor: int) -> tuple[int, Mark]:
        """Size of the file that is written, number and hash of the log's last line."""
        facts = os.fstat(descriptor)
        if (facts.st_ino, facts.st_size) == self._end[:2] and facts.st_size:
            return facts.st_size, self._end[2]
        line, size = self._files.last_line(descriptor)
        if not line:
            return size, FIRST
        last = self._parsed(line, 0)
        return size, Mark(last.seq, last.hash)


def _end(seal: str) -> bytes:
    """What stands in a line after all that its seal is of."""
    return f',"hash":"{seal}"}}\n'.encode()


def _is_sealed(line: bytes, seal: str) -> bool:
    """Whether a line is as it was sealed, to the last byte."""
    end = _end(seal)
    return line.endswith(end) and hashlib.sha256(line[: -len(end)] + b"}").hexdigest() == seal


def _line(study: str, answer: SiteAnswer | Greeting | Answer, why: str) -> _Line:
    words: dict[str, Any]
    match answer:
        case Update():
            sums = {f"{task}/{key}": array for task, own in answer.metrics.items() for key, array in own.items()}
            spent = asdict(answer.spent) if answer.spent else None
            words = {"weights": dict(answer.weights), "train": dict(answer.train), "spent": spent}
            words |= {"cluster": answer.cluster} if answer.cluster else {}
            return _Line(study, answer.exchange, "update", why, words, answer.tensors, sums)
        case MaskedUpdate():
            spent = asdict(answer.spent) if answer.spent else None
            words = {"contexts": dict(answer.contexts), "spent": spent}
            return _Line(study, answer.exchange, "secure_aggregation", why, words, answer.parts)
        case SiteAnswer():
            return _Line(study, 0, "answer", why, answer.plain())
        case Greeting():
            return _Line(study, 0, "greeting", why, asdict(answer))
        case Refusal():
            return _Line(study, answer.exchange, "refusal", why, {"code": answer.code.value, "site": answer.site})
    assert_never(answer)


def _facts(
    last: Mark, at: str, line: _Line, ledger: Mapping[str, Any] | None, known: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """All that a line says but its own hash, by the names of `_FIELDS`."""
    tensors, metrics = _described(line.tensors), _described(line.metrics)
    place = line.study, line.exchange, line.kind, line.why
    said = (last.seq + 1, at, *place, tensors, metrics, line.words, ledger, known, last.hash)
    return dict(zip(_FIELDS, said, strict=True))


def _described(arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Type, shape, and digest of the values in the order of their places, by name."""
    return {key: (a.dtype.str, a.shape, hashlib.sha256(a.reshape(-1).data).hexdigest()) for key, a in arrays.items()}


def _frozen(content: dict[str, Any]) -> dict[str, Any]:
    """Lists as the tuples that they were, so that a line read back is the entry that was written."""
    for part in ("tensors", "metrics"):
        content[part] = {key: (kind, tuple(shape), digest) for key, (kind, shape, digest) in content[part].items()}
    return content
