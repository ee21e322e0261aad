"""A gate over TLS with a recorder behind it, in place of Flower: what came through is what Flower would have had."""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.common.identity.keys import NodeKey, public_pem
from fedgraft.server.bodies.bodies import Bodies
from fedgraft.server.fleet.bell import Bells
from fedgraft.server.operations.doors import DoorLimits
from fedgraft.server.operations.gate import Gate, gate_server
from fedgraft.server.operations.request_auth import RequestAuth
from fedgraft.server.provisioning.home import ServerHome
from helpers.ports import free_port


@dataclass
class Recorder:
    """An ASGI application that notes what reaches it, and answers with headers that nobody outside should see."""

    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    answer: bytes = b"answered"
    status: int = 200

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        self.seen.append((scope["method"], scope["path"], headers, body))
        kept = [(b"content-type", b"x/y"), (b"flwr-it", b"yes"), (b"set-cookie", b"a=b"), (b"server", b"inner")]
        await send({"type": "http.response.start", "status": self.status, "headers": kept})
        await send({"type": "http.response.body", "body": self.answer})


class Gated:
    """Both servers, each in a thread of its own; `url` is the gate's, `client` trusts its authority."""

    def __init__(
        self,
        home: ServerHome,
        guard: RequestAuth,
        authority: Path | None = None,
        limits: DoorLimits | None = None,
        *,
        bodies: Bodies | None = None,
        bells: Bells | None = None,
    ) -> None:
        self.recorder, self.port, inner = Recorder(), free_port(), free_port()
        files = {"ssl_certfile": str(home.inner[0]), "ssl_keyfile": str(home.inner[1])}
        config = uvicorn.Config(self.recorder, port=inner, log_config=None, lifespan="off", **files)
        self._inner = uvicorn.Server(config)
        gate = Gate(
            guard, f"https://127.0.0.1:{inner}", authority or home.authority, limits, bodies=bodies, bells=bells
        )
        self.doors = gate.doors
        self._gate = gate_server(gate, ("127.0.0.1", self.port), home.gate)
        self._threads = [threading.Thread(target=_serve, args=(one,), daemon=True) for one in (self._inner, self._gate)]
        for thread in self._threads:
            thread.start()
        self.trusted = ssl.create_default_context(cafile=str(home.authority))
        self.client = httpx.Client(base_url=f"https://localhost:{self.port}", verify=self.trusted, trust_env=False)
        while not (self._inner.started and self._gate.started):
            threading.Event().wait(0.02)

    def stop_inner(self) -> None:
        self._inner.should_exit = self._inner.force_exit = True
        self._threads[0].join()

    def close(self) -> None:
        self.client.close()
        for server, thread in zip((self._inner, self._gate), self._threads, strict=True):
            server.should_exit = server.force_exit = True
            thread.join()


def signed(key: NodeKey, at: datetime | None = None) -> dict[str, str]:
    """The headers of Flower's node authentication."""
    stamp = (at or datetime.now(UTC)).isoformat()
    signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(public_pem(key)).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(signature).decode(),
        "content-type": "application/x-protobuf",
    }


def _serve(server: uvicorn.Server) -> None:
    asyncio.run(server.serve())
