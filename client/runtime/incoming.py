"""What a site takes in from the server, at most: the memory here is the hospital's, whatever the server sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

from fedgraft.common.base.environment import memory_bytes
from fedgraft.common.messages.pieces import gathered, is_of, put_together

_PIECE = "/v1/fleet/pull-object"
_LARGEST_PIECE, _LARGEST_WORDS = 16 << 20, 2 << 20
"""Bytes of one answer: Flower's pieces have 5 MiB, and are named in some 70 bytes each."""

_PATIENCE_S = 300.0
"""So long the next piece of a message may take; the server itself gives up what stands still for three minutes."""


class TooLargeAnswer(ValueError):
    """An answer of more bytes than any that is honest."""


def bound(response: httpx.Response) -> None:
    """Let no answer be larger than it may be, packed or not; a hook of httpx."""
    # Nobody asked for it: what is packed could be a thousand times as large.
    response.headers.pop("content-encoding", None)
    largest = _LARGEST_PIECE if response.request.url.path.endswith(_PIECE) else _LARGEST_WORDS
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
    """One message, piece by piece, each as its name says; `go_on` raises when nobody waits for it any more."""

    def __init__(self, pull: Callable[[str], bytes], go_on: Callable[[], None]) -> None:
        self._pull, self._go_on = pull, go_on
        self._last = time.monotonic()

    def gather(self, tree: ObjectTree) -> dict[str, bytes]:
        """All pieces. TooLargeMessage; ObjectPullError if one is not there, is another, or does not come."""
        return gathered(tree, self._one, largest_message())

    def _one(self, name: str) -> bytes:
        try:
            content = self._pull(name)
        except ObjectUnavailableError:
            self._go_on()
            if time.monotonic() - self._last > _PATIENCE_S:
                raise ObjectPullError(name, "it does not come") from None
            raise
        if not is_of(name, content):
            raise ObjectPullError(name, "it is another")
        self._last = time.monotonic()
        return content


def message_of(name: str, contents: dict[str, bytes]) -> Message:
    """What the pieces make. TooLargeMessage; TypeError if that is no message."""
    made = put_together(name, contents, largest_message())
    if not isinstance(made, Message):
        raise TypeError("no message")
    return made
