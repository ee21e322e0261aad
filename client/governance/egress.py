"""What left a site: an append-only file in which every message stands before it is sent, each line sealed to the last.

A line names the message's tensors with shapes, types and digests, all its other words in full, and why policy let it
go. It holds no tensor: whoever has the message can be shown what the line says, but the line does not tell of patients.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedgraft.common.base.errors import LedgerError
from fedgraft.common.base.files import canonical_json
from fedgraft.common.base.locking import lock
from fedgraft.common.protocol.instructions import (
    Answer,
    Arrays,
    Greeting,
    MaskedUpdate,
    Refusal,
    Update,
)

Kind = Literal["greeting", "update", "secure_aggregation", "refusal"]
_FIRST = "0" * 64
_FIELDS = ("seq", "at", "study", "exchange", "kind", "why", "tensors", "metrics", "words", "previous")


@dataclass(frozen=True)
class EgressEntry:
    """One message. `tensors` and `metrics` hold (type, shape, SHA-256) by name; `words` are all the rest of it."""

    seq: int
    at: str
    study: str
    exchange: int
    kind: Kind
    why: str
    tensors: Mapping[str, tuple[str, tuple[int, ...], str]]
    metrics: Mapping[str, tuple[str, tuple[int, ...], str]]
    words: Mapping[str, Any]
    previous: str
    hash: str = ""

    def seal(self) -> str:
        """SHA-256 of all that the line says and of the line before it, 64 hex digits."""
        return hashlib.sha256(self.content()).hexdigest()

    def content(self) -> bytes:
        """All that the line says but its own hash, as canonical JSON."""
        return canonical_json({name: getattr(self, name) for name in _FIELDS})


class EgressLog:
    """The file of one site. Safe for several processes at once."""

    def __init__(self, folder: Path, *, sync: bool = True) -> None:
        """The log in a site's state folder; the file is made with the first line.

        Without `sync` a line survives the kill of the process, but not a loss of power: enough for a simulation.
        """
        self._path = folder / "egress.jsonl"
        self._sync = sync
        self._end = (0, 0, _FIRST)

    def record(self, study: str, answer: Greeting | Answer, why: str) -> None:
        """Put a message on disk as about to leave. OSError if that cannot be done, and then it must not leave."""
        descriptor = self._open()
        try:
            lock(descriptor)
            size, seq, previous = self._last(descriptor)
            content = _entry(seq + 1, previous, study, answer, why).content()
            seal = hashlib.sha256(content).hexdigest()
            line = content[:-1] + f',"hash":"{seal}"}}\n'.encode()
            written = os.write(descriptor, line)
            if written != len(line):
                os.ftruncate(descriptor, size)
                raise OSError(f"only {written} of {len(line)} bytes could be written")
            if self._sync:
                os.fdatasync(descriptor)
            self._end = (size + len(line), seq + 1, seal)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def entries(self) -> Iterator[EgressEntry]:
        """All messages in order, each checked against the one before; LedgerError names the first that is wrong."""
        previous, number = _FIRST, 0
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return  # a message that was being written when the site was killed, and so never left
                number += 1
                entry = self._parsed(line, number)
                if entry.seq != number or entry.previous != previous or entry.seal() != entry.hash:
                    raise LedgerError(f"{self._path}: line {number} was changed, or lines before it are gone.")
                previous = entry.hash
                yield entry

    def _parsed(self, line: bytes, number: int) -> EgressEntry:
        try:
            return EgressEntry(**_frozen(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            raise LedgerError(f"{self._path}: line {number} is damaged.") from None

    def _last(self, descriptor: int) -> tuple[int, int, str]:
        """Size of the file, number and hash of its last line. A torn line at its end never left, and is cut off."""
        size = os.fstat(descriptor).st_size
        if size == self._end[0]:
            return self._end
        data = os.pread(descriptor, size, 0)
        whole = data.rfind(b"\n") + 1
        if whole != size:
            os.ftruncate(descriptor, whole)
        lines = data[:whole].splitlines()
        if not lines:
            return 0, 0, _FIRST
        last = self._parsed(lines[-1], len(lines))
        return whole, last.seq, last.hash


def _entry(seq: int, previous: str, study: str, answer: Greeting | Answer, why: str) -> EgressEntry:
    tensors: Arrays = {}
    metrics: Arrays = {}
    words: dict[str, Any]
    match answer:
        case Update():
            kind: Kind = "update"
            tensors = answer.tensors
            metrics = {f"{task}/{key}": array for task, sums in answer.metrics.items() for key, array in sums.items()}
            spent = asdict(answer.spent) if answer.spent else None
            words = {"weights": dict(answer.weights), "train": dict(answer.train), "spent": spent}
        case MaskedUpdate():
            kind, tensors = "secure_aggregation", answer.parts
            words = {"contexts": dict(answer.contexts), "spent": asdict(answer.spent) if answer.spent else None}
        case Greeting():
            kind, words = "greeting", asdict(answer)
        case Refusal():
            kind, words = "refusal", {"code": answer.code.value}
    exchange = 0 if isinstance(answer, Greeting) else answer.exchange
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return EgressEntry(seq, at, study, exchange, kind, why, _described(tensors), _described(metrics), words, previous)


def _described(arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...], str]]:
    return {key: (a.dtype.str, a.shape, hashlib.sha256(_bytes(a)).hexdigest()) for key, a in arrays.items()}


def _bytes(array: np.ndarray) -> memoryview | bytes:
    """An array's values in memory order; its type and shape stand beside the digest."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b""


def _frozen(content: dict[str, Any]) -> dict[str, Any]:
    """Lists as the tuples that they were, so that a line read back is the entry that was written."""
    for part in ("tensors", "metrics"):
        content[part] = {key: (kind, tuple(shape), digest) for key, (kind, shape, digest) in content[part].items()}
    return content
