"""A multipart body as it comes: of each part its bytes, never more of them in memory than the network hands over."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message

_HEAD_BYTES = 16 << 10
"""So long may be what stands before the first part, and the head of a part."""


class BadBodyError(Exception):
    """A body that is no multipart body, or that ends before its last boundary."""


def boundary_of(content_type: str) -> bytes | None:
    """What divides the parts, if this type says that the body has parts."""
    head = Message()
    head["content-type"] = content_type
    boundary = head.get_boundary() if head.get_content_type() == "multipart/related" else None
    return boundary.encode("latin-1", "replace") if boundary else None


def parts(chunks: Iterator[bytes], boundary: bytes) -> Iterator[Iterator[bytes]]:
    """The bytes of each part, to be read before the next part is asked for. BadBodyError, also in the middle.

    What stands behind the last boundary is not read: it could have no end.
    """
    reader = _Reader(chunks, b"\r\n--" + boundary)
    before = 0
    for piece in reader.until_boundary():
        before += len(piece)
        if before > _HEAD_BYTES:
            raise BadBodyError
    while not reader.is_last():
        reader.skip_head()
        part = reader.until_boundary()
        yield part
        for _ in part:
            pass


class _Reader:
    def __init__(self, chunks: Iterator[bytes], divider: bytes) -> None:
        self._chunks, self._divider = chunks, divider
        self._held = b"\r\n"  # so that a boundary at the very start is found as all others are

    def until_boundary(self) -> Iterator[bytes]:
        """What comes before the next boundary, which is taken away with it."""
        while (at := self._held.find(self._divider)) < 0:
            safe = max(0, len(self._held) - len(self._divider) + 1)
            if safe:
                piece, self._held = self._held[:safe], self._held[safe:]
                yield piece
            self._more()
        piece, self._held = self._held[:at], self._held[at + len(self._divider) :]
        if piece:
            yield piece

    def is_last(self) -> bool:
        """Whether the boundary just passed ends the body."""
        while len(self._held) < 2:
            self._more()
        return self._held.startswith(b"--")

    def skip_head(self) -> None:
        """Pass over the lines that describe a part."""
        while (at := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > _HEAD_BYTES:
                raise BadBodyError
            self._more()
        self._held = self._held[at + 4 :]

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise BadBodyError
        self._held += chunk
