"""A server that answers a site from a script, over TLS, in Flower's place."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse, PushMessagesResponse

from fedgraft.server.provisioning.home import ServerHome

ACTIVATE, PULL, PUSH = (f"/v1/fleet/{name}" for name in ("activate-node", "pull-messages", "push-messages"))


class Scripted:
    """Answers each path with the next of its statuses, the last one for ever."""

    def __init__(self, home: ServerHome, port: int) -> None:
        self.statuses: dict[str, list[int]] = {}
        self.answers: dict[str, Callable[[bytes], bytes]] = {}
        """By path what makes other answers than those of a server that has nothing to say."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.asked: list[str] = []
        self.bodies: list[tuple[str, bytes]] = []
        files = {"ssl_certfile": str(home.gate[0]), "ssl_keyfile": str(home.gate[1])}
        self._server = uvicorn.Server(
            uvicorn.Config(self, port=port, log_config=None, lifespan="off", ws="none", **files)
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.02)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, body, more = scope["path"], b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.asked.append(path)
        self.bodies.append((path, body))
        statuses = self.statuses.get(path, [200])
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        answer = {
            ACTIVATE: ActivateNodeResponse(node_id=5),
            PULL: PullMessagesResponse(),
            PUSH: PushMessagesResponse(session_id="s"),
        }.get(path)
        content = answer.SerializeToString() if answer is not None else b""
        if path in self.answers:
            content = await asyncio.to_thread(self.answers[path], body)
        headers = [(b"content-type", b"application/x-protobuf"), *self.headers]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
