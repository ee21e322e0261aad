"""Several pieces of messages in one request or one answer, each behind a head: its name, how it is, and its length.

Flower sends each piece in a request of its own, and every request costs both ends more than many a piece. Whoever
reads is told of a piece's length before any of it is taken in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

MOST_AT_ONCE = 64
"""Pieces in one request or answer, at most."""

LARGEST_PIECE = 8 << 20
"""Bytes of one piece, at most; Flower's have 5 MiB."""

ENVELOPE = "0" * 64
"""The name of what is no piece: a request that says for what run the pieces behind it are."""

_HEAD = struct.Struct(">B32sQ")
HEAD_BYTES = _HEAD.size


class Condition(IntEnum):
    """How a piece is: here, announced and not here yet, or not to be had."""

    HERE = 0
    LATER = 1
    NONE = 2


class BrokenFrame(ValueError):
    """Bytes that are no frames, too many or too large ones, or the first half of one."""


@dataclass(frozen=True)
class PieceHead:
    """The head of a piece that is `size` bytes long. Names are SHA-256 in hex digits."""

    name: str
    condition: Condition
    size: int


def head(name: str, condition: Condition, size: int = 0) -> bytes:
    """What comes before the content of a piece. ValueError if the name is no digest."""
    return _HEAD.pack(condition, _digest(name), size)


def framed(pieces: Iterable[tuple[str, bytes]]) -> bytes:
    """Pieces that are here, one behind the other."""
    return b"".join(part for name, content in pieces for part in (head(name, Condition.HERE, len(content)), content))


def joined(names: Iterable[str]) -> str:
    """Names as one text, as a request for these pieces has them."""
    return ",".join(names)


def split(names: str) -> list[str]:
    """The names in a request, each once. BrokenFrame if there are too many, or one is no digest."""
    found = names.split(",", MOST_AT_ONCE)
    if len(found) > MOST_AT_ONCE:
        raise BrokenFrame
    for name in found:
        _digest(name)
    return list(dict.fromkeys(found))


class FrameReader:
    """Puts pieces together out of bytes as they come, of which there may be `most`, each up to `largest` bytes."""

    def __init__(self, most: int = MOST_AT_ONCE, largest: int = LARGEST_PIECE) -> None:
        self._left, self._largest = most, largest
        self._begun = bytearray()
        self._frame: PieceHead | None = None
        self._parts: list[memoryview] = []
        self._missing = 0

    def take(self, data: bytes) -> Iterator[tuple[PieceHead, bytes]]:
        """The pieces that are whole with these bytes. BrokenFrame as soon as it is known."""
        rest = memoryview(data)
        while rest:
            if self._frame is None:
                wanted = HEAD_BYTES - len(self._begun)
                self._begun += rest[:wanted]
                rest = rest[wanted:]
                if len(self._begun) < HEAD_BYTES:
                    return
                self._frame = self._read()
                self._missing = self._frame.size
            part = rest[: self._missing]
            self._parts.append(part)
            self._missing -= len(part)
            rest = rest[len(part) :]
            if not self._missing:
                frame, whole = self._frame, b"".join(self._parts)
                self._frame, self._parts = None, []
                yield frame, whole

    def end(self) -> None:
        """No more comes. BrokenFrame if it was not all."""
        if self._frame is not None or self._begun:
            raise BrokenFrame

    def _read(self) -> PieceHead:
        condition, name, size = _HEAD.unpack(self._begun)
        self._begun.clear()
        self._left -= 1
        here = condition == Condition.HERE
        if self._left < 0 or condition not in iter(Condition) or size > (self._largest if here else 0):
            raise BrokenFrame
        return PieceHead(name.hex(), Condition(condition), size)


def unframed(data: bytes) -> list[tuple[PieceHead, bytes]]:
    """All pieces in these bytes. BrokenFrame if they are anything else."""
    reader = FrameReader()
    found = list(reader.take(data))
    reader.end()
    return found


def _digest(name: str) -> bytes:
    try:
        found = bytes.fromhex(name)
    except ValueError:
        raise BrokenFrame from None
    if len(found) != 32 or found.hex() != name:
        raise BrokenFrame
    return found
