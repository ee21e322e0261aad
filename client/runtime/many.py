"""Pieces of messages, many in one request, between a site and the server's gate.

A request that breaks off costs what it had not brought yet: what has come is kept, and of what goes the next request
holds half as many pieces, so that a slow or shaky line needs to bear one piece at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import httpx
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedgraft.common.messages.cut import Parts, size_of_parts
from fedgraft.common.messages.frames import (
    ENVELOPE,
    HEAD_BYTES,
    MOST_AT_ONCE,
    Condition,
    FrameReader,
    head,
    joined,
)
from fedgraft.common.messages.pieces import Take

PUSH_PIECES, PULL_PIECES = "/v1/fleet/push-pieces", "/v1/fleet/pull-pieces"

AT_ONCE_BYTES = 48 << 20
"""So much is sent in one request, and no piece more; the gate takes 64 MiB."""

_SLICE = 1 << 16
"""Bytes that are handed to TLS at a time: it copies what is left of them for every 16 KiB."""


class PiecesClient(FleetHttpClient):
    """Flower's client of the Fleet API, for requests and answers that are not in memory as a whole."""

    @contextmanager
    def exchange(
        self, path: str, message: PushObjectRequest | PullObjectRequest, content: bytes | Sequence[bytes | memoryview]
    ) -> Iterator[httpx.Response]:
        """An answer that is still to be read. Errors as of any call of this client."""
        size = len(content) if isinstance(content, bytes) else sum(map(len, content))
        request = self._client.build_request(
            "POST",
            f"{self._base_url}{path}",
            content=content if isinstance(content, bytes) else _slices(content),
            headers={
                "content-type": PROTOBUF_MEDIA_TYPE,
                "accept": PROTOBUF_MEDIA_TYPE,
                "content-length": str(size),
            },
        )
        call: ProtobufCall = self._send_request
        for interceptor in reversed(self._interceptors):
            call = partial(interceptor.intercept, call_next=call)
        response = call(ProtobufRequestContext(rpc_method=path, message=message, request=request))
        try:
            response.raise_for_status()
            yield response
        finally:
            response.close()

    def _send_request(self, context: ProtobufRequestContext) -> httpx.Response:
        response = self._client.send(context.request, stream=True)
        if response.is_error:  # for those who look for Flower's words in it
            response.read()
        return response


class PieceCalls:
    """The requests for pieces of one run's messages; each is one attempt, and raises as calls of the client do."""

    def __init__(self, client: PiecesClient, node: Node, run: int) -> None:
        self._client, self._node, self._run = client, node, run

    def pull(self, names: Collection[str], take: Take) -> None:
        """Have what there is of pieces that are still among `names`. ObjectPullError if the server has not got one."""
        if not names:  # the answer broke off behind the last of them
            return
        request = PullObjectRequest(node=self._node, run_id=self._run, object_id=joined(names))
        reader = FrameReader()
        with self._client.exchange(PULL_PIECES, request, request.SerializeToString()) as response:
            for part in response.iter_raw():
                for frame, content in reader.take(part):
                    if frame.condition is Condition.NONE:
                        raise ObjectPullError(frame.name, "the object could not be found.")
                    take(frame.name, content if frame.condition is Condition.HERE else None)
        reader.end()

    def push(self, pieces: Sequence[tuple[str, Parts]], session: str) -> None:
        """Send these pieces. ObjectPushError if the server does not want one."""
        request = PushObjectRequest(node=self._node, run_id=self._run, session_id=session)
        envelope = request.SerializeToString()
        parts: list[bytes | memoryview] = [head(ENVELOPE, Condition.HERE, len(envelope)), envelope]
        for name, content in pieces:
            parts += [head(name, Condition.HERE, size_of_parts(content)), *content]
        with self._client.exchange(PUSH_PIECES, request, parts) as response:
            answer = PushObjectResponse.FromString(response.read())
        if not answer.stored:
            raise ObjectPushError(pieces[0][0], self._run, session)


def together(pieces: Sequence[tuple[str, Parts]]) -> int:
    """How many of the first of these pieces go in one request, one at least."""
    size = count = 0
    for _, content in pieces[:MOST_AT_ONCE]:
        size += size_of_parts(content) + HEAD_BYTES
        if count and size > AT_ONCE_BYTES:
            break
        count += 1
    return count


def _slices(parts: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    for part in parts:
        for start in range(0, len(part), _SLICE):
            yield bytes(part[start : start + _SLICE])
