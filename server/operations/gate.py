"""The gate: the one thing of the server that others can reach. It ends TLS, and passes the Fleet API of Flower alone.

Flower serves its Fleet, Control and Runtime APIs on one port, the latter two without authentication. Here they do not
exist: what is not on the list is answered with 404, and Flower itself listens on loopback.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import h11
import httpx
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedgraft.common.messages.frames import LARGEST_PIECE
from fedgraft.server.bodies.bodies import Bodies
from fedgraft.server.bodies.pieces import PUSH_PIECE, PUSH_PIECES, ForgedPiece
from fedgraft.server.bodies.relay import LARGEST_AT_ONCE, LENGTH, PIECE_PATHS, Answer, Plain, Relay, TurnedAway
from fedgraft.server.fleet.bell import Bells, Waits
from fedgraft.server.operations.doors import Client, DoorLimits, Doors, listening
from fedgraft.server.operations.request_auth import KEY, AuthVerdict, RequestAuth
from fedgraft.server.operations.senders import PUSH, speaks_for_itself

FLEET = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "push-pieces",
        "pull-pieces",
        "confirm-message-received",
    )
)
"""All of the Fleet API but register and unregister: who takes part is decided by provisioning. And many pieces."""

LARGEST_BYTES = LARGEST_PIECE
"""Flower sends arrays in pieces of 5 MiB."""

_LARGEST = {PUSH_PIECE: LARGEST_BYTES, PUSH_PIECES: LARGEST_AT_ONCE, PUSH: 1 << 18}
"""A reply's pieces are named in some 70 bytes each."""

_LARGEST_WORDS = 1 << 14
"""Bytes of a request that holds numbers and names alone."""

_BODY_S = 60.0
_HEAD_S = 20.0
_BACKLOG = 1024
_PASSED_ON = (b"content-type", b"accept")
_PREFIX = b"flwr-"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_ASK = "/v1/fleet/pull-messages"
_LATER: Plain = (503, [(b"retry-after", b"2"), (LENGTH, b"0")], b"")


class Gate:
    """The ASGI application behind the gate's TLS. `inner` is Flower's base URL; `limits` are those of connections.

    `bodies` is where large pieces are put down, if they are to pass Flower by, and `bells` what rings for messages, if
    sites are to wait for them.
    """

    def __init__(
        self,
        guard: RequestAuth,
        inner: str,
        authority: Path,
        limits: DoorLimits | None = None,
        *,
        bodies: Bodies | None = None,
        bells: Bells | None = None,
    ) -> None:
        self._guard = guard
        self._relay = None if bodies is None else Relay(bodies, self._pass_on, guard.one_more)
        self._waits = Waits[Plain](bells.down) if bells is not None else None
        self.doors = Doors(limits)
        self._log = logging.getLogger("fedgraft.gate")
        trusted = ssl.create_default_context(cafile=str(authority))
        # The proxy of the environment is for the outer world.
        self._client = httpx.AsyncClient(base_url=inner, verify=trusted, trust_env=False, timeout=30.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request: pass it on, or refuse it with a bare status."""
        if scope["type"] != "http":
            return
        status, headers, body = await self._answer(scope, receive)
        if status != 200:
            self._log.info("%d %s", status, scope["path"] if scope["path"] in FLEET else "elsewhere")
            # What was not read of a request must not be taken for the next one.
            headers = [*headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if not isinstance(body, bytes):
            async for part in body:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            body = b""
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path, address = scope["path"], (scope.get("client") or ("", 0))[0]
        # The raw path too: what another parser might read differently is not for us.
        plain = scope.get("raw_path") == path.encode() and not scope.get("query_string")
        if path in FLEET and plain:
            return await self._fleet(scope, receive, scope.get("client") or ("", 0))
        if not self._guard.stranger(address):
            return _bare(429)
        healthy = path == "/health" and plain and scope["method"] in ("GET", "HEAD")
        return _bare(await self._health() if healthy else 404)

    async def _fleet(self, scope: Scope, receive: Receive, client: Client) -> Answer:
        path, headers = scope["path"], _single(scope["headers"])
        if scope["method"] != "POST" or headers is None:
            return _bare(400)
        largest = _LARGEST.get(path, _LARGEST_WORDS)
        if not _fits(headers, largest):
            return _bare(413)
        verdict = self._guard.judge(headers, client[0])
        if verdict is not AuthVerdict.PASS:
            return _bare(verdict.value)
        self.doors.signed(client, self._guard.name(headers))
        try:
            return await self._let_in(path, receive, headers, _parts(receive, largest))
        except TurnedAway as refused:
            return _bare(refused.status)

    async def _let_in(
        self, path: str, receive: Receive, headers: dict[bytes, bytes], parts: AsyncIterator[bytes]
    ) -> Answer:
        if self._relay is not None and path in PIECE_PATHS:
            return await self._pieces(self._relay, path, headers, parts)
        body = b"".join([part async for part in parts])
        if not speaks_for_itself(path, body):
            self._log.warning("a site speaks in another's name: %s", self._guard.name(headers))
            return _bare(403)
        if self._waits is not None and path == _ASK:
            return await self._next(self._waits, receive, headers, body)
        return await self._pass_on(path, headers, body)

    async def _next(self, waits: Waits[Plain], receive: Receive, headers: dict[bytes, bytes], body: bytes) -> Plain:
        """The next message for a site, which may wait for it."""
        leaves = asyncio.ensure_future(receive())

        async def ask() -> Plain:
            # Flower would take for delivered what nobody is there to have.
            return _LATER if leaves.done() else await self._pass_on(_ASK, headers, body)

        try:
            return await waits.ask(self._guard.name(headers), (headers[KEY], body), ask, _is_empty)
        finally:
            leaves.cancel()

    async def _pieces(
        self, relay: Relay, path: str, headers: dict[bytes, bytes], parts: AsyncIterator[bytes]
    ) -> Answer:
        try:
            return await relay.answer(path, self._guard.name(headers), headers, parts)
        except ForgedPiece:
            self._log.warning("a site sends what no site may: %s", self._guard.name(headers))
            return _bare(403)
        except OSError as error:
            self._log.error("a piece could not be written or read: %s", error.strerror)
            return _LATER

    async def _pass_on(self, path: str, headers: dict[bytes, bytes], body: bytes) -> Plain:
        if not self._guard.name(headers):  # shut out while it waited, or while its request came
            return _bare(401)
        passed = [(key, value) for key, value in headers.items() if key in _PASSED_ON or key.startswith(_PREFIX)]
        try:
            answer = await self._client.post(path, content=body, headers=passed)
        except httpx.TransportError:
            # Sites wait for a server that restarts.
            return _LATER
        kept = [(k, v) for k, v in answer.headers.raw if k.lower() == b"content-type" or k.lower().startswith(_PREFIX)]
        return answer.status_code, [*kept, (LENGTH, str(len(answer.content)).encode())], answer.content

    async def _health(self) -> int:
        try:
            return (await self._client.get("/health")).status_code
        except httpx.TransportError:
            return 503


def _is_empty(answer: Plain) -> bool:
    """Whether Flower has no message; it says so with an empty body."""
    return answer[0] == 200 and not answer[2]


def _bare(status: int) -> Plain:
    return status, [(LENGTH, b"0")], b""


def _single(raw: list[tuple[bytes, bytes]]) -> dict[bytes, bytes] | None:
    """The headers by name; None if one is there twice, which two programs could read in two ways."""
    headers = dict(raw)
    return headers if len(headers) == len(raw) else None


def _fits(headers: dict[bytes, bytes], largest: int) -> bool:
    length = headers.get(b"content-length", b"0")
    return length.isdigit() and int(length) <= largest


async def _parts(receive: Receive, largest: int) -> AsyncIterator[bytes]:
    """The body as it comes, of which every 8 MiB may take so long. TurnedAway if it is none."""
    began, size, more = asyncio.get_running_loop().time(), 0, True
    while more:
        try:
            async with asyncio.timeout_at(began + _BODY_S * (1 + size // LARGEST_BYTES)):
                message = await receive()
        except TimeoutError:
            raise TurnedAway(408) from None
        if message["type"] != "http.request":
            raise TurnedAway(400)
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > largest:
            raise TurnedAway(413)
        yield part
        more = message.get("more_body", False)


class _Impatient(H11Protocol):
    """Closes connections that take their time over a request's head, or over nothing at all."""

    doors: Doors

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if (client := transport.get_extra_info("peername")) is not None:
            self.doors.agreed((client[0], client[1]))
        self._since = self.loop.time()
        self._timer = self.loop.call_later(_HEAD_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        now = self.loop.time()
        if self.conn.their_state is not h11.IDLE:
            self._since = now
        elif now - self._since > _HEAD_S - 1.0:
            self.transport.close()
            return
        self._timer = self.loop.call_later(_HEAD_S / 2, self._look)


class _GateServer(uvicorn.Server):
    """A server that listens behind the gate's doors."""

    doors: Doors
    listens: Callable[[], None]

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen until told to stop."""
        listen = (self.config.host, self.config.port)
        await super().serve(sockets or [listening(self.doors, listen, _BACKLOG)])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and only then say so."""
        await super().startup(sockets)
        if self.started:
            self.listens()


def gate_server(
    gate: Gate, listen: tuple[str, int], certificate: tuple[Path, Path], listens: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """A server for the gate on `listen`, with the certificate and key; TLS 1.2 at least. `listens` is called once it
    answers and a signal ends it."""
    config = uvicorn.Config(
        gate,
        host=listen[0],
        port=listen[1],
        http=type("_OfTheseDoors", (_Impatient,), {"doors": gate.doors}),
        loop="asyncio",  # the one that asks the listening socket for each connection
        backlog=_BACKLOG,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(_HEAD_S) * 2,
        h11_max_incomplete_event_size=1 << 14,
        ssl_certfile=str(certificate[0]),
        ssl_keyfile=str(certificate[1]),
        timeout_graceful_shutdown=5,
    )
    config.load()
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    server = _GateServer(config)
    server.doors, server.listens = gate.doors, listens
    return server
