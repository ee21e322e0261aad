"""Many pieces in one request to Flower's SuperLink, from sites and from runs: what it decides of each is as for one.

A piece costs Flower's layers some milliseconds in a request of its own, and a model of 45 MB has fifteen. Here one
request holds many, and whose it is, and whether its run goes on, is looked at once. Who asks is known by Flower's own
layers, before all this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated

from flwr.common.constant import SUPERLINK_NODE_ID, Status
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.server.superlink.linkstate import LinkState
from flwr.server.superlink.utils import check_abort
from flwr.supercore.dependencies.runtime import RuntimeStateDependency, TaskDependency
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_DEPENDENCY, PROTOBUF_REQUEST_TYPES
from flwr.supercore.routers.runtime.router import router as runtime_router
from flwr.superlink.routers.fleet.router import LinkStateDependency
from flwr.superlink.routers.fleet.router import router as fleet_router

from fedgraft.common.messages.frames import Condition, framed, head, split, unframed
from fedgraft.server.bodies.object_store import BodiesObjectStore
from fedgraft.server.bodies.pieces import PULL_PIECES, PUSH_PIECES, SEND_PIECES, TAKE_PIECES

Push = Annotated[PushObjectRequest, PROTOBUF_REQUEST_DEPENDENCY]
Pull = Annotated[PullObjectRequest, PROTOBUF_REQUEST_DEPENDENCY]


def push_pieces(request: PushObjectRequest, state: LinkState) -> PushObjectResponse:
    """Take pieces of a reply from a site."""
    _demand_running(request, state)
    size = len(request.object_content)
    given = stored_all(request, state, request.run_id)
    state.store_traffic(request.run_id, bytes_sent=0, bytes_recv=size)
    return given


def pull_pieces(request: PullObjectRequest, state: LinkState) -> PullObjectResponse:
    """Give a site pieces of messages that were sent to it; of all others there is none."""
    _demand_running(request, state)
    store = _store(state)
    given = found_all(request, state, request.run_id, lambda names: store.those_for(request.node.node_id, names))
    state.store_traffic(request.run_id, bytes_sent=len(given.object_content), bytes_recv=0)
    return given


def send_pieces(request: PushObjectRequest, state: LinkState, run: int) -> PushObjectResponse:
    """Take pieces of messages from a run."""
    _demand_run(request)
    return stored_all(request, state, run)


def take_pieces(request: PullObjectRequest, state: LinkState, run: int) -> PullObjectResponse:
    """Give a run pieces of replies."""
    _demand_run(request)
    return found_all(request, state, run, lambda names: names)


def stored_all(request: PushObjectRequest, state: LinkState, run: int) -> PushObjectResponse:
    """Take the pieces of a request, each as Flower takes one; whether all are there now.

    A body that is not wanted is forgotten. BrokenFrame if these are no pieces.
    """
    store, there = _store(state), True
    for frame, content in unframed(request.object_content):
        if state.store_object(run, request.session_id, frame.name, content) or store.has_same(frame.name, content):
            continue
        store.discard(content)
        there = False
    return PushObjectResponse(stored=there)


def found_all(
    request: PullObjectRequest, state: LinkState, run: int, own: Callable[[list[str]], Collection[str]]
) -> PullObjectResponse:
    """The pieces that a request names, references in place of bodies; those that are not among its `own` are not there.

    BrokenFrame if the request names too many.
    """
    names = split(request.object_id)
    held = _store(state).held(own(names))
    # What Flower does about a piece that has not come, or is lost, takes transactions of its own.
    found = [(name, held.get(name) or (state.get_object(run, name) if name in held else None)) for name in names]
    content = b"".join(_frame(name, content) for name, content in found)
    return PullObjectResponse(object_found=True, object_available=True, object_content=content)


def open_routes(to_sites: Callable[[], None], to_runs: Callable[[], None]) -> None:
    """Have Flower's routers answer such requests, before its application is made, and once in a process.

    `to_sites` is called when a message to a site is there with all its pieces, `to_runs` when a reply is.
    """

    def fleet_push_pieces(request: Push, state: LinkStateDependency) -> PushObjectResponse:
        return _rung(request, state, push_pieces(request, state), to_runs)

    def fleet_pull_pieces(request: Pull, state: LinkStateDependency) -> PullObjectResponse:
        return pull_pieces(request, state)

    def push_pieces_of_run(request: Push, state: RuntimeStateDependency, task: TaskDependency) -> PushObjectResponse:
        assert isinstance(state, LinkState)
        return _rung(request, state, send_pieces(request, state, task.run_id), to_sites)

    def pull_pieces_of_run(request: Pull, state: RuntimeStateDependency, task: TaskDependency) -> PullObjectResponse:
        assert isinstance(state, LinkState)
        return take_pieces(request, state, task.run_id)

    for router, path, answer, kind in (
        (fleet_router, PUSH_PIECES, fleet_push_pieces, PushObjectRequest),
        (fleet_router, PULL_PIECES, fleet_pull_pieces, PullObjectRequest),
        (runtime_router, SEND_PIECES, push_pieces_of_run, PushObjectRequest),
        (runtime_router, TAKE_PIECES, pull_pieces_of_run, PullObjectRequest),
    ):
        router.post(path.removeprefix(router.prefix))(answer)
        PROTOBUF_REQUEST_TYPES["POST", path] = kind


def _rung(
    request: PushObjectRequest, state: LinkState, given: PushObjectResponse, ring: Callable[[], None]
) -> PushObjectResponse:
    """What was answered, once it has rung for a message that is whole with these pieces."""
    if _store(state).is_complete(request.session_id):
        ring()
    return given


def _demand_running(request: PushObjectRequest | PullObjectRequest, state: LinkState) -> None:
    """As Flower's handlers of one piece have it."""
    over = check_abort(request.run_id, [Status.PENDING, Status.STARTING, Status.FINISHED], state)
    if over:
        said = f"SuperNode {request.node.node_id}, exception: {over}"
        raise FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, said)


def _demand_run(request: PushObjectRequest | PullObjectRequest) -> None:
    if request.node.node_id != SUPERLINK_NODE_ID:
        raise FlowerError(ApiErrorCode.RUNTIME_UNEXPECTED_NODE_ID, "Unexpected node ID.")


def _store(state: LinkState) -> BodiesObjectStore:
    store = state.object_store
    assert isinstance(store, BodiesObjectStore)
    return store


def _frame(name: str, content: bytes | None) -> bytes:
    if content:
        return framed([(name, content)])
    return head(name, Condition.NONE if content is None else Condition.LATER)
