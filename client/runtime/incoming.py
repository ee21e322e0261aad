"""What a site takes in from the server, at most: the memory here is the hospital's, whatever the server sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError

from fedgraft.client.runtime.many import PULL_PIECES
from fedgraft.common.base.environment import memory_bytes
from fedgraft.common.messages.frames import HEAD_BYTES, LARGEST_PIECE, MOST_AT_ONCE
from fedgraft.common.messages.pieces import Pull, Take, gathered, is_of, put_together

_LARGEST_PIECES, _LARGEST_WORDS = MOST_AT_ONCE * (LARGEST_PIECE + HEAD_BYTES), 2 << 20
"""Bytes of one answer: pieces are taken out of it as they come, and named in some 70 bytes each."""

_SOON_S, _LATE_S = 0.1, 2.0
"""How long a site waits before it asks again for pieces that were not there: at first, and at most."""

_PATIENCE_S = 300.0
"""So long the next piece of a message may take; the server itself gives up what stands still for three minutes."""


class TooLargeAnswer(ValueError):
    """An answer of more bytes than any that is honest."""


def bound(response: httpx.Response) -> None:
    """Let no answer be larger than it may be, packed or not; a hook of httpx."""
    # Nobody asked for it: what is packed could be a thousand times as large.
    response.headers.pop("content-encoding", None)
    pieces = response.is_success and response.request.url.path.endswith(PULL_PIECES)
    largest = _LARGEST_PIECES if pieces else _LARGEST_WORDS
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _Bounded(response.stream, largest)


class _Bounded(httpx.SyncByteStream):
    """Another stream, up to a size."""

    def __init__(self, stream: httpx.SyncByteStream, largest: int) -> None:
        self._stream, self._largest = stream, largest

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._stream:
            size += len(part)
            if size > self._largest:
                raise TooLargeAnswer
            yield part

    def close(self) -> None:
        """Close the other stream."""
        self._stream.close()


def largest_message() -> int:
    """Bytes that a message may take: a third of the memory, since a model is held more than once."""
    return int(memory_bytes()[0] / 3)


class Incoming:
    """One message, piece by piece, each as its name says. `pause` raises when nobody waits for it any more."""

    def __init__(self, pull: Pull, pause: Callable[[float], None]) -> None:
        self._pull, self._pause = pull, pause
        self._last, self._delay = time.monotonic(), _SOON_S

    def gather(self, tree: ObjectTree) -> dict[str, bytes]:
        """All pieces. TooLargeMessage; ObjectPullError if one is not there, is another, or does not come."""
        return gathered(tree, self._pull_checked, largest_message(), self._wait)

    def _pull_checked(self, names: Collection[str], take: Take) -> None:
        def checked(name: str, content: bytes | None) -> None:
            if content is not None:
                if not is_of(name, content):
                    raise ObjectPullError(name, "it is another")
                self._last, self._delay = time.monotonic(), _SOON_S
            take(name, content)

        self._pull(names, checked)

    def _wait(self) -> None:
        if time.monotonic() - self._last > _PATIENCE_S:
            raise ObjectPullError("a piece", "it does not come")
        self._pause(self._delay)
        self._delay = min(2 * self._delay, _LATE_S)


def message_of(name: str, contents: dict[str, bytes]) -> Message:
    """What the pieces make. TooLargeMessage; TypeError if that is no message."""
    made = put_together(name, contents, largest_message())
    if not isinstance(made, Message):
        raise TypeError("no message")
    return made
