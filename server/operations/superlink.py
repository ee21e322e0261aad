"""Flower's SuperLink as the server runs it: each request's body is put together once, before Flower looks at it.

Flower 1.41 passes a body through four layers of middleware piece by piece, as TLS gives it out: with models of 45 MB
that is a large part of a SuperLink's work. And a message is forgotten when the node that it is for has it: Flower takes
anybody's word for that. Run as a module, with the options of `flower-superlink`.
"""

from __future__ import annotations

import gc

import flwr.superlink.main as superlink
from fastapi import FastAPI
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ConfirmMessageReceivedResponse
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.utils import int64_to_uint64
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, flower_superlink
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.servicer.fleet import fleet_handlers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedgraft.server.operations.gate import LARGEST_BYTES


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


def _create(
    config: SuperLinkLifespanConfig | None = None, superlink_lifespan_class: type[SuperLinkLifespan] | None = None
) -> FastAPI:
    app = _flowers(config, superlink_lifespan_class)
    app.add_middleware(WholeBody)
    # What is there from the start stays: it need not be looked through again and again.
    gc.collect()
    gc.freeze()
    return app


_flowers = superlink.create_app
_flowers_confirm = fleet_handlers.confirm_message_received

if __name__ == "__main__":
    superlink.create_app = _create
    fleet_handlers.confirm_message_received = confirm
    flower_superlink()
