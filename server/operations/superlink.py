"""Flower's SuperLink as the server runs it: each request's body is put together once, before Flower looks at it.

Flower 1.41 passes a body through four layers of middleware piece by piece, as TLS gives it out: with models of 45 MB
that is a large part of a SuperLink's work. A message is forgotten when the node that it is for has it, and its pieces
are given to that node alone: Flower takes anybody's word for the one, and gives a piece to whoever knows its name.
Large pieces are files, to which Flower has references. Run as a module, with the options of `flower-superlink`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import flwr.superlink.main as superlink
from fastapi import FastAPI
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.object_store import ObjectStore, object_store_factory
from flwr.supercore.utils import int64_to_uint64
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, flower_superlink
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedgraft.server.bodies.bodies import Bodies
from fedgraft.server.bodies.object_store import BodiesObjectStore
from fedgraft.server.fleet.bell import Bell, Bells
from fedgraft.server.operations.gate import LARGEST_BYTES

_Asked = ParamSpec("_Asked")
_Given = TypeVar("_Given")


class WholeBody:
    """Gives the next layer a request's body in one piece, unless it is larger than what the gate lets through."""

    def __init__(self, app: ASGIApp, largest: int = LARGEST_BYTES) -> None:
        self._app = app
        self._largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        pending: list[Message] = [await self._gather(receive)]

        async def again() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, again, send)

    async def _gather(self, receive: Receive) -> Message:
        """All of a body as one message; of one that is too large, what came so far, and the rest as it comes."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if not more or size > self._largest:
                return {"type": "http.request", "body": b"".join(parts), "more_body": more}


def confirm(
    request: ConfirmMessageReceivedRequest, state: LinkState, store: ObjectStore
) -> ConfirmMessageReceivedResponse:
    """Forget a message, if the node that says that it has it is the one that it was sent to."""
    sent = state.get_valid_message_ins(request.message_object_id)  # type: ignore[attr-defined]  # of Flower's own states
    if sent is None or int64_to_uint64(sent["dst_node_id"]) != request.node.node_id:
        return ConfirmMessageReceivedResponse()
    return _flowers_confirm(request=request, state=state, store=store)


def pull(request: PullObjectRequest, state: LinkState) -> PullObjectResponse:
    """Give a node a piece of a message that was sent to it; of all others there is none."""
    store = state.object_store
    if isinstance(store, BodiesObjectStore) and not store.is_for(request.object_id, request.node.node_id):
        return PullObjectResponse(object_found=False, object_available=False)
    return _flowers_pull(request=request, state=state)


def _create(
    config: SuperLinkLifespanConfig | None = None, superlink_lifespan_class: type[SuperLinkLifespan] | None = None
) -> FastAPI:
    app = _flowers(config, superlink_lifespan_class)
    app.add_middleware(WholeBody)
    # What is there from the start stays: it need not be looked through again and again.
    gc.collect()
    gc.freeze()
    return app


def rings(handler: Callable[_Asked, _Given], bell: Bell) -> Callable[_Asked, _Given]:
    """A handler that takes messages in, and rings once they are in the database."""

    def taking(*asked: _Asked.args, **more: _Asked.kwargs) -> _Given:
        given = handler(*asked, **more)
        bell.ring()
        return given

    return taking


_flowers = superlink.create_app
_flowers_confirm = fleet_handlers.confirm_message_received
_flowers_pull = fleet_handlers.pull_object

if __name__ == "__main__":
    superlink.create_app = _create
    fleet_handlers.confirm_message_received = confirm
    fleet_handlers.pull_object = pull
    if (bodies := Bodies.of_environment()) is not None:
        object_store_factory.SqlObjectStore = partial(BodiesObjectStore, bodies)  # type: ignore
    bells = Bells(Path(os.environ["FLWR_HOME"]))
    runtime_handlers.push_messages = rings(runtime_handlers.push_messages, bells.down)
    fleet_handlers.push_messages = rings(fleet_handlers.push_messages, bells.up)
    flower_superlink()
