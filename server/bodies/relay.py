"""How the gate passes pieces on: one in a request, as Flower's own sites send it, or many.

What comes in is on the disk before Flower hears of it, and one piece of a site is in memory at a time, whatever the
site sends; what goes out is read piece by piece, as fast as the site takes it. A site sends one such request at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedgraft.common.messages.frames import (
    ENVELOPE,
    HEAD_BYTES,
    LARGEST_PIECE,
    MOST_AT_ONCE,
    BrokenFrame,
    Condition,
    FrameReader,
    PieceHead,
    framed,
    head,
    split,
    unframed,
)
from fedgraft.server.bodies.bodies import Bodies, looks_like_reference, size_of
from fedgraft.server.bodies.pieces import (
    PULL_PIECE,
    PULL_PIECES,
    PUSH_PIECE,
    PUSH_PIECES,
    fetched,
    is_taken,
    laid_down,
    put_down,
)

LARGEST_AT_ONCE = 64 << 20
"""Bytes of a request with many pieces."""

_LARGEST_ENVELOPE = 1 << 12

_SLICE = 1 << 18
"""Bytes that are handed to TLS at a time: they stay in the processor's cache until they are with the system. Of 45 MB
in pieces of 5 MiB the gate took 60 ms of CPU, and 39 so."""

PIECE_PATHS = frozenset({PUSH_PIECE, PULL_PIECE, PUSH_PIECES, PULL_PIECES})

Headers = dict[bytes, bytes]
Body = bytes | AsyncIterator[bytes]
Answer = tuple[int, list[tuple[bytes, bytes]], Body]
"""Status, headers and body, all of it or as it is read."""

Plain = tuple[int, list[tuple[bytes, bytes]], bytes]
PassOn = Callable[[str, Headers, bytes], Awaitable[Plain]]
LENGTH = b"content-length"


class TurnedAway(Exception):
    """A request that is not answered but with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Relay:
    """Between sites and Flower, to which `pass_on` brings a request; `bodies` is where large pieces are put down.

    `may` says whether a site of this name may send or have one piece more.
    """

    def __init__(self, bodies: Bodies, pass_on: PassOn, may: Callable[[str], bool]) -> None:
        self._bodies, self._pass_on, self._may = bodies, pass_on, may
        self._sending: set[str] = set()

    async def answer(self, path: str, name: str, headers: Headers, parts: AsyncIterator[bytes]) -> Answer:
        """The answer to a request of the site of this name. TurnedAway, ForgedPiece; OSError of the disk."""
        if path == PUSH_PIECES:
            return await self._push_many(name, headers, parts)
        body = b"".join([part async for part in parts])
        if path == PULL_PIECES:
            return await self._pull_many(name, headers, body)
        return await (self._push if path == PUSH_PIECE else self._pull)(headers, body)

    async def _pull(self, headers: Headers, body: bytes) -> Answer:
        """One piece. In a thread, since disks can be slow."""
        status, kept, answer = await self._pass_on(PULL_PIECE, headers, body)
        whole = await asyncio.to_thread(fetched, self._bodies, answer) if status == 200 else answer
        return status, _with_length(kept, len(whole)), whole

    async def _push(self, headers: Headers, body: bytes) -> Answer:
        passed, reference = await asyncio.to_thread(put_down, self._bodies, body)
        status, kept, answer = await self._pass_on(PUSH_PIECE, headers, passed)
        # Of 503 nobody knows what became of it: what was not taken is swept.
        if status != 503 and not (status == 200 and is_taken(answer)):
            self._bodies.discard(reference)
        return status, kept, answer

    async def _push_many(self, name: str, headers: Headers, parts: AsyncIterator[bytes]) -> Answer:
        if name in self._sending:
            raise TurnedAway(429)
        held: list[tuple[str, bytes]] = []
        self._sending.add(name)
        try:
            request = await self._put_down_all(name, parts, held)
            request.object_content = framed(held)
            status, kept, answer = await self._pass_on(PUSH_PIECES, headers, request.SerializeToString())
        except BaseException:
            self._discard(held)
            raise
        finally:
            self._sending.discard(name)
        # Flower forgets what it does not want; of 503, as above, nobody knows.
        if status not in (200, 503):
            self._discard(held)
        return status, kept, answer

    async def _put_down_all(
        self, name: str, parts: AsyncIterator[bytes], held: list[tuple[str, bytes]]
    ) -> PushObjectRequest:
        """The request that stands before the pieces, which are put down in `held`, as Flower is to see them."""
        reader, request, beside = FrameReader(MOST_AT_ONCE + 1), None, 0
        try:
            async for part in parts:
                for frame, content in reader.take(part):
                    if request is None:
                        request = _envelope(frame, content)
                        continue
                    if frame.condition is not Condition.HERE:
                        raise BrokenFrame
                    if not self._may(name):
                        raise TurnedAway(429)
                    held.append((frame.name, await asyncio.to_thread(laid_down, self._bodies, frame.name, content)))
                    beside += len(held[-1][1])
                    if beside > LARGEST_PIECE:
                        raise TurnedAway(413)
            reader.end()
        except BrokenFrame:
            raise TurnedAway(400) from None
        if request is None or not held:
            raise TurnedAway(400)
        return request

    def _discard(self, held: list[tuple[str, bytes]]) -> None:
        for _, content in held:
            self._bodies.discard(content)

    async def _pull_many(self, name: str, headers: Headers, body: bytes) -> Answer:
        try:
            names = split(PullObjectRequest.FromString(body).object_id)
        except (DecodeError, BrokenFrame):
            raise TurnedAway(400) from None
        if not all(self._may(name) for _ in names):
            raise TurnedAway(429)
        status, kept, answer = await self._pass_on(PULL_PIECES, headers, body)
        if status != 200:
            return status, kept, answer
        found = unframed(PullObjectResponse.FromString(answer).object_content)
        sizes = [size_of(content) for _, content in found]
        return status, _with_length(kept, sum(sizes) + HEAD_BYTES * len(found)), self._read_all(found, sizes)

    async def _read_all(self, found: list[tuple[PieceHead, bytes]], sizes: list[int]) -> AsyncIterator[bytes]:
        for (frame, held), size in zip(found, sizes, strict=True):
            content: bytes | None = held
            if looks_like_reference(held):
                content = await asyncio.to_thread(self._bodies.content, held)
            if content is None:
                # Its length is said already. The site asks again, and hears what became of it.
                raise ConnectionAbortedError
            yield head(frame.name, frame.condition, size)
            for start in range(0, size, _SLICE):
                yield content[start : start + _SLICE]


def _envelope(frame: PieceHead, content: bytes) -> PushObjectRequest:
    if frame.name != ENVELOPE or len(content) > _LARGEST_ENVELOPE:
        raise BrokenFrame
    try:
        request: PushObjectRequest = PushObjectRequest.FromString(content)
    except DecodeError:
        raise BrokenFrame from None
    if request.object_id or request.object_content:
        raise BrokenFrame
    return request


def _with_length(kept: list[tuple[bytes, bytes]], size: int) -> list[tuple[bytes, bytes]]:
    return [*(one for one in kept if one[0] != LENGTH), (LENGTH, str(size).encode())]
