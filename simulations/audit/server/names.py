"""What a site, or a stranger, says at the gate: nothing passes in another's name, and nothing that is not signed.

The real gate is asked, and behind it is nothing that listens: what it lets through comes back with a status of its own.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node

from fedgraft.common.identity.keys import NodeKey, new_node_key, public_pem
from fedgraft.server.operations.gate import LARGEST_BYTES, Gate
from fedgraft.server.operations.request_auth import RequestAuth
from fedgraft.server.operations.senders import PUSH
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.provision import Authority
from fedgraft.simulations.audit.checks import NOBODY

_PULL, _CONTROL = "/v1/fleet/pull-messages", "/v1/control/start-run"
_OWN, _OTHER = 11, 12
_PASSED = 503
"""What the gate says if what is behind it does not answer."""

Headers = dict[str, str]


@dataclass(frozen=True)
class _Request:
    path: str
    headers: Headers
    body: bytes = b""


def names_of_others(folder: Path) -> Iterator[str]:
    """An enrolled site, and somebody with a key of its own, at the gate of a consortium."""
    server = {"host": "localhost"}
    authority = Authority(folder / "kits")
    authority.provision(Consortium.model_validate({"name": "audit", "server": server, "sites": ["north"]}))
    key, stranger = new_node_key(), new_node_key()
    once = _signed(key)
    tried = {
        "": _Request(PUSH, _signed(key), _pushed()),
        "a reply in another site's name": _Request(PUSH, _signed(key), _pushed(src_node_id=_OTHER)),
        "an instruction of the coordinator's": _Request(PUSH, _signed(key), _pushed(reply_to_message_id="")),
        "a message to another site": _Request(PUSH, _signed(key), _pushed(dst_node_id=_OTHER)),
        "bytes that are no message": _Request(PUSH, _signed(key), b"\xff" * 40),
        "a reply of a key that is not enrolled": _Request(PUSH, _signed(stranger), _pushed()),
        "a key that did not sign": _Request(PUSH, _signed(stranger) | _own(_signed(key)), _pushed()),
        "an old signature": _Request(PUSH, _signed(key, timedelta(minutes=10)), _pushed()),
        "a signature for the first time": _Request(_PULL, once),
        "a signature once more": _Request(_PULL, once),
        "an order to start a run": _Request(_CONTROL, _signed(key)),
        "more than a request may have": _Request(PUSH, _signed(key) | {"content-length": str(LARGEST_BYTES + 1)}),
    }
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        guard = RequestAuth(lambda: {public_pem(key).decode(): "north"})
        gate = Gate(guard, f"https://127.0.0.1:{nobody.getsockname()[1]}", authority.home.authority)
        with _quiet():
            passed = asyncio.run(_passed(gate, tried))
    if not {"", "a signature for the first time"} <= passed:
        yield NOBODY
    yield from (f"{words} passes the gate" for words in tried if words in passed and words not in _HONEST)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the gate says to its own log is nothing for whoever audits."""
    log = logging.getLogger("fedgraft.gate")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


_HONEST = frozenset({"", "a signature for the first time"})


async def _passed(gate: Gate, tried: Mapping[str, _Request]) -> set[str]:
    return {words for words, request in tried.items() if await _status(gate, request) == _PASSED}


async def _status(gate: Gate, request: _Request) -> int:
    """What the gate answers to one request, as its HTTP server hands it over."""
    answers: list[Mapping[str, Any]] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": b"",
        "client": ("192.0.2.1", 1),
        "headers": [(key.encode(), value.encode()) for key, value in request.headers.items()],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def send(message: Any) -> None:
        answers.append(message)

    await gate(scope, receive, send)
    return int(answers[0]["status"])


def _signed(key: NodeKey, ago: timedelta = timedelta()) -> Headers:
    """The headers of Flower's node authentication, signed some time ago."""
    stamp = (datetime.now(UTC) - ago).isoformat()
    signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    told = {"public-key": public_pem(key), "timestamp": None, "signature": signature}
    return {f"flwr-{name}": stamp if raw is None else base64.b64encode(raw).decode() for name, raw in told.items()}


def _own(headers: Headers) -> Headers:
    return {"flwr-public-key": headers["flwr-public-key"]}


def _pushed(**changes: Any) -> bytes:
    """A reply as a site pushes it, but for what is changed of what it says of itself."""
    told: dict[str, Any] = {
        "src_node_id": _OWN,
        "dst_node_id": SUPERLINK_NODE_ID,
        "reply_to_message_id": "asked",
        "message_id": "told",
    }
    message = Message(metadata=Metadata(**(told | changes)))
    tree = ObjectTree(object_id="told")
    request = PushMessagesRequest(node=Node(node_id=_OWN), messages_list=[message], message_object_trees=[tree])
    return bytes(request.SerializeToString())
