"""A witness that follows at every message: its marks stand in turn in two places of one file of constant size.

What follows a charge is replaced as a whole (`hash_chain.py`): a new file, a new name, and both on the disk. A line of
the egress log leaves with every message, so its mark is written over the one before the last: one write, and what the
disk must know is that write alone. A write that is torn, by a kill or a loss of power, leaves the mark before it whole,
as a file that was not replaced would. Each place is in a block of its own, so that no block holds both.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from fedgraft.client.privacy.ledger.hash_chain import STUCK, Mark
from fedgraft.common.base.disk import naming
from fedgraft.common.base.errors import LedgerError
from fedgraft.common.base.files import write_atomic

_BLOCK = 4096
_BYTES = 2 * _BLOCK
_DIGITS = 20
_LENGTH = 2 * (_DIGITS + 1) + 2 * (64 + 1)
_LOOKS = 5


@dataclass(frozen=True)
class _Slot:
    """A mark, in which of the two places it stands, and the number of the write that put it there."""

    place: int
    turn: int
    mark: Mark


def read_slots(path: Path) -> Mark:
    """The mark that was written last, of those that were written whole. LedgerError if there is none, or no file.

    Another process may write meanwhile. A reader that is so slow that both places change under it looks again.
    """
    for _ in range(_LOOKS):
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                newest = _newest(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            break
        if newest is not None:
            return newest.mark
    raise LedgerError(f"{path}: the witness is missing or damaged.", fix=STUCK)


def write_slots(path: Path, mark: Mark, *, sync: bool = True) -> None:
    """Let the witness say `mark`, all or nothing; a file is made if none is there. Only one may write at a time.

    Without `sync` that holds for a kill of the process, and not for a loss of power. A link to a place elsewhere stays
    one. The last call counts, whatever the numbers of marks: people may settle on a log that is shorter.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        _write_new(path, mark, sync=sync)
        return
    try:
        newest = _newest(descriptor)
        whole = os.fstat(descriptor).st_size == _BYTES
        if newest is not None and whole:
            with naming(path):
                place, turn = 1 - newest.place, newest.turn + 1
                text = _text(turn, mark)
                _write_over(descriptor, place, text)
                _remembered(text, _Slot(place, turn, mark))
                if sync:
                    os.fdatasync(descriptor)
            return
    finally:
        os.close(descriptor)
    _write_new(path, mark, sync=sync)


def _write_new(path: Path, mark: Mark, *, sync: bool) -> None:
    """The whole file with all its bytes, so that later marks need no room on the disk."""
    empty = b" " * (_BLOCK - 1) + b"\n"
    write_atomic(path.resolve(), _text(1, mark) + empty[_LENGTH:] + empty, private=True, sync=sync)


def _write_over(descriptor: int, place: int, data: bytes) -> None:
    written = os.pwrite(descriptor, data, place * _BLOCK)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes of the witness could be written")


def _newest(descriptor: int) -> _Slot | None:
    both = os.pread(descriptor, _BLOCK + _LENGTH, 0)
    first, second = _slot(0, both[:_LENGTH]), _slot(1, both[_BLOCK:])
    if first is None or second is None:
        return first or second
    return second if second.turn > first.turn else first


def _text(turn: int, mark: Mark) -> bytes:
    said = f"{turn:0{_DIGITS}d} {mark.seq:0{_DIGITS}d} {mark.hash} ".encode()
    return said + hashlib.sha256(said).hexdigest().encode() + b"\n"


_SEEN: dict[tuple[int, bytes], _Slot] = {}
"""What stood in a place, by its bytes: for all sites that a process may simulate, each of which asks at every visit."""
_MOST_SEEN = 4096


def _slot(place: int, data: bytes) -> _Slot | None:
    """What stands in a place; None if it is empty, or was not written to its end."""
    if (seen := _SEEN.get((place, data))) is not None:
        return seen
    said, seal = data[: -(64 + 1)], data[-(64 + 1) :]
    if len(data) != _LENGTH or seal != hashlib.sha256(said).hexdigest().encode() + b"\n":
        return None
    turn, seq, digest = said.decode().split()
    return _remembered(data, _Slot(place, int(turn), Mark(int(seq), digest)))


def _remembered(data: bytes, slot: _Slot) -> _Slot:
    if len(_SEEN) >= _MOST_SEEN:
        _SEEN.clear()
    _SEEN[slot.place, data] = slot
    return slot
