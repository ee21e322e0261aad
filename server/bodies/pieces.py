"""What the gate does with the pieces of models that sites send and fetch: they go to files, and come from files.

Flower behind the gate sees a reference in place of a large piece. It decides all the same who may send what and who may
have it: a piece that it does not take is forgotten, and one that it does not give is not read.
"""

from __future__ import annotations

from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest, PushObjectResponse
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedgraft.server.bodies.bodies import Bodies, is_large_piece, looks_like_reference

PUSH_PIECE, PULL_PIECE = "/v1/fleet/push-object", "/v1/fleet/pull-object"
PUSH_PIECES, PULL_PIECES = "/v1/fleet/push-pieces", "/v1/fleet/pull-pieces"
"""Of sites, whose requests come through the gate: one piece, and many."""

SEND_PIECES, TAKE_PIECES = "/v1/runtime/push-pieces", "/v1/runtime/pull-pieces"
"""Of runs, on the server's own machine."""


class ForgedPiece(Exception):
    """A site sent what only the server's own processes may say."""


def put_down(bodies: Bodies, body: bytes) -> tuple[bytes, bytes]:
    """A request that sends a piece as Flower is to see it, and the reference in it, empty if there is none.

    ForgedPiece if it is none that a site may send; OSError if there is no room.
    """
    try:
        request = PushObjectRequest.FromString(body)
    except DecodeError:
        raise ForgedPiece from None
    held = laid_down(bodies, request.object_id, request.object_content)
    if held is request.object_content:
        return body, b""
    request.object_content = held
    return request.SerializeToString(), held


def laid_down(bodies: Bodies, name: str, content: bytes) -> bytes:
    """A site's piece as Flower is to see it: a reference if it is a large one. ForgedPiece and OSError as above."""
    if looks_like_reference(content):
        raise ForgedPiece
    return bodies.keep(name, content) if is_large_piece(name, content) else content


def is_taken(answer: bytes) -> bool:
    """Whether Flower took the piece."""
    try:
        return bool(PushObjectResponse.FromString(answer).stored)
    except DecodeError:
        return False


def fetched(bodies: Bodies, answer: bytes) -> bytes:
    """Flower's answer to a site that wants a piece, with the piece itself."""
    try:
        response = PullObjectResponse.FromString(answer)
    except DecodeError:
        return answer
    if not looks_like_reference(response.object_content):
        return answer
    content = bodies.content(response.object_content)
    if content is None:
        return bytes(PullObjectResponse(object_found=False, object_available=False).SerializeToString())
    response.object_content = content
    return bytes(response.SerializeToString())
