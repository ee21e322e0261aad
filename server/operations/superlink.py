"""Flower's SuperLink as the server runs it: each request's body is put together once, before Flower looks at it.

Flower 1.41 passes a body through four layers of middleware piece by piece, as TLS gives it out: with models of 45 MB
that is a large part of a SuperLink's work. A message is forgotten when the node that it is for has it, and its pieces
are given to that node alone: Flower takes anybody's word for the one, and gives a piece to whoever knows its name.
What a run has no use for any more goes at once, and not when the run ends. Many pieces may come and go in one request.
Large pieces are files, to which Flower has references. A request passes the layers of its own API alone.

Run as a module, with the options of `flower-superlink`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import flwr.superlink.main as superlink
from fastapi import FastAPI
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.object_store import ObjectStore, object_store_factory
from flwr.supercore.routers.runtime.tracing import RuntimeTracingMiddleware
from flwr.supercore.utils import int64_to_uint64
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, flower_superlink
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.routers.control import middlewares as control
from flwr.superlink.routers.fleet.middlewares import FleetEventLogMiddleware
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedgraft.server.bodies.bodies import Bodies
from fedgraft.server.bodies.many import open_routes
from fedgraft.server.bodies.object_store import BodiesObjectStore
from fedgraft.server.fleet.bell import Bell, Bells
from fedgraft.server.operations.gate import LARGEST_BYTES

APIS: dict[Any, str] = {
    control.ControlSensitiveResponseMiddleware: "/v1/control/",
    control.ControlAuthenticationMiddleware: "/v1/control/",
    control.ControlLicenseMiddleware: "/v1/control/",
    control.ControlEventLogMiddleware: "/v1/control/",
    NodeAuthMiddleware: "/v1/fleet/",
    FleetEventLogMiddleware: "/v1/fleet/",
    RuntimeTracingMiddleware: "/v1/runtime/",
}
"""By layer of Flower's how the paths begin that it does anything about. One that is not here is for all requests."""

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


class OnlyUnder:
    """A layer for requests whose path begins so, by which they are routed too; all others go to what is behind it.

    Flower leads each request through nine layers, of which most let it through as it is: a task and two queues each.
    """

    def __init__(self, app: ASGIApp, layer: Middleware, beginning: str) -> None:
        self._behind, self._beginning = app, beginning
        self._layer = layer.cls(app, *layer.args, **layer.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        other = scope["type"] == "http" and not scope["path"].startswith(self._beginning)
        await (self._behind if other else self._layer)(scope, receive, send)


def each_under_its_api(layers: Iterable[Middleware]) -> list[Middleware]:
    """The same layers in the same order, each for its own API alone, if it is for one."""
    return [
        Middleware(OnlyUnder, layer=layer, beginning=APIS[layer.cls]) if layer.cls in APIS else layer
        for layer in layers
    ]


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
    if isinstance(store, BodiesObjectStore) and not store.those_for(request.node.node_id, [request.object_id]):
        return PullObjectResponse(object_found=False, object_available=False)
    return _flowers_pull(request=request, state=state)


def push(request: PushMessagesRequest, state: LinkState) -> PushMessagesResponse:
    """Take a reply, unless it or one of its pieces has the name of a message.

    Its node would be given whatever it hangs on the name of a message that was sent to it, and would break off a reply
    of another, or have a message forgotten, by their names.
    """
    store = state.object_store
    if isinstance(store, BodiesObjectStore):
        for message, tree in zip(request.messages_list, request.message_object_trees, strict=True):
            if store.is_taken(tree, message.metadata.reply_to_message_id):
                return PushMessagesResponse()
    return _flowers_push(request=request, state=state)


def push_piece(request: PushObjectRequest, state: LinkState) -> PushObjectResponse:
    """Take a piece from a site."""
    return _or_there(request, state, _flowers_push_piece(request=request, state=state))


def send_piece(request: PushObjectRequest, state: LinkState, task: Task) -> PushObjectResponse:
    """Take a piece from a run."""
    return _or_there(request, state, _flowers_send_piece(request=request, state=state, task=task))


def _or_there(request: PushObjectRequest, state: LinkState, given: PushObjectResponse) -> PushObjectResponse:
    """A piece that is there is there: whoever sends it again did not hear the first answer."""
    store = state.object_store
    if given.stored or not isinstance(store, BodiesObjectStore):
        return given
    return PushObjectResponse(stored=store.has_same(request.object_id, request.object_content))


def forget(request: ConfirmMessageReceivedRequest, state: LinkState, task: Task) -> ConfirmMessageReceivedResponse:
    """Forget a reply that a run has; of a message that it has sent itself, also what answers it, now or later."""
    store, number = state.object_store, request.message_object_id
    if isinstance(store, BodiesObjectStore) and store.is_message(number):
        for reply in store.replies(number):
            store.delete(reply)
        state.delete_messages({number})
    return _flowers_forget(request=request, state=state, task=task)


def give_replies(request: PullAppMessagesRequest, state: LinkState, task: Task) -> PullAppMessagesResponse:
    """Give a run the replies that there are; what they answer is forgotten, whatever its node says of it."""
    given, store = _flowers_give_replies(request=request, state=state, task=task), state.object_store
    for number in {one.metadata.reply_to_message_id for one in given.messages_list}:
        if number in store:
            store.delete(number)
    return given


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
    """A handler that takes messages or pieces in, and rings once a message is there with all of its pieces."""

    def taking(*asked: _Asked.args, **more: _Asked.kwargs) -> _Given:
        given = handler(*asked, **more)
        request, state = (*asked, *more.values())[:2]
        if _is_whole(given, request, state):
            bell.ring()
        return given

    return taking


def _is_whole(given: object, request: object, state: object) -> bool:
    if not isinstance(request, PushObjectRequest):
        return not getattr(given, "objects_to_push", ())
    store = state.object_store if isinstance(state, LinkState) else None
    return not isinstance(store, BodiesObjectStore) or store.is_complete(request.session_id)


_flowers = superlink.create_app
_flowers_layers = superlink._get_middleware
_flowers_confirm = fleet_handlers.confirm_message_received
_flowers_pull = fleet_handlers.pull_object
_flowers_push = fleet_handlers.push_messages
_flowers_give_replies = runtime_handlers.pull_messages
_flowers_push_piece = fleet_handlers.push_object
_flowers_send_piece = runtime_handlers.push_object
_flowers_forget = runtime_handlers.confirm_message_received

if __name__ == "__main__":
    superlink.create_app = _create
    superlink._get_middleware = lambda: each_under_its_api(_flowers_layers())
    fleet_handlers.confirm_message_received = confirm
    fleet_handlers.pull_object = pull
    bells = Bells(Path(os.environ["FLWR_HOME"]))
    fleet_handlers.push_object = rings(push_piece, bells.up)
    runtime_handlers.push_object = rings(send_piece, bells.down)
    if (bodies := Bodies.of_environment()) is not None:
        object_store_factory.SqlObjectStore = partial(BodiesObjectStore, bodies)  # type: ignore
        open_routes(bells.down.ring, bells.up.ring)
    runtime_handlers.push_messages = rings(runtime_handlers.push_messages, bells.down)
    fleet_handlers.push_messages = rings(push, bells.up)
    runtime_handlers.confirm_message_received = forget
    runtime_handlers.pull_messages = give_replies
    flower_superlink()
