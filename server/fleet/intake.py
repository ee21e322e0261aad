"""Takes replies from a real server, each behind a wall: what one site sent may cost that site its reply, and no more.

Flower puts a reply together out of pieces that the site sent: it believes what the pieces say of the message that they
answer, copies one piece as often as another asks, waits hours for one that does not come, and raises what it meets, in
the middle of all other replies. Here the server's own record says what is answered, sizes are added up before anything
is put together, and each reply comes in a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError

from fedgraft.common.base.errors import ENDS
from fedgraft.common.messages.cut import Parts, cut, size_of_parts
from fedgraft.common.messages.frames import MOST_AT_ONCE, Condition, framed, joined, unframed
from fedgraft.common.messages.pieces import Take, TooLargeMessage, gathered, is_of, put_together
from fedgraft.common.protocol.instructions import Arrays, Code
from fedgraft.server.bodies.bodies import SMALL_BYTES, Bodies
from fedgraft.server.bodies.pieces import SEND_PIECES, TAKE_PIECES
from fedgraft.server.fleet.bell import Bell
from fedgraft.server.fleet.transport import Taken

_ROOM = 1 << 30
_THREADS = 64
_FULL_BYTES = 4 << 20
"""So much is sent at once, and what comes after it in another request."""

_LISTEN_S = 0.05
_ASK_ANYWAY_S = 1.0
"""So often Flower is asked in any case: it answers by itself for sites that are gone, for which nothing rings."""


_PIECES_ANYWAY_S = 4.0
"""So often for pieces of a reply that has begun to come: it rings when it is whole."""


def room_for(state: Arrays) -> int:
    """Bytes that a reply about a model with these entries may have: sums of features can outgrow a small model."""
    return _ROOM + 4 * sum(int(array.nbytes) for array in state.values())


def send_beside(grid: Grid, bodies: Bodies) -> None:
    """Let what this grid sends from now on put down its large pieces, and send references to them, many at a time.

    Flower's grid copies a piece six times until it is sent, and sends one after the other.
    """
    client: Any = grid._runtime_client  # type: ignore[attr-defined]  # as for the pieces of replies

    def send(pieces: Iterable[tuple[str, bytes]], session: str) -> None:
        request = PushObjectRequest(
            node=Node(node_id=SUPERLINK_NODE_ID),
            run_id=grid.run.run_id,
            session_id=session,
            object_content=framed(pieces),
        )
        answer = client._unary_unary(
            path=SEND_PIECES, rpc_method=SEND_PIECES, request=request, response_type=PushObjectResponse
        )
        if not answer.stored:
            raise ObjectPushError("a piece", request.run_id, session)

    def push_messages(messages: Iterable[Message]) -> list[str]:
        sent = list(messages)
        if not sent:
            return []
        pieces = cut(sent)
        bare = [message_to_proto(remove_content_from_message(message)) for message in sent]
        announced = PushAppMessagesRequest(messages_list=bare, message_object_trees=pieces.trees)
        answer = client.PushMessages(announced)
        wanted = set(answer.objects_to_push)
        lacking = (put_down(bodies, name, pieces.parts(name)) for name in pieces.objects if name in wanted)
        for batch in _batches(lacking):
            send(batch, answer.session_id)
        return list(answer.message_ids)

    grid.push_messages = push_messages  # type: ignore[method-assign]


def put_down(bodies: Bodies, name: str, parts: Parts) -> tuple[str, bytes]:
    """A piece as it is sent: its name, and it itself or the reference to what it holds.

    This process has just named it by its digest: it is not held against that once more.
    """
    large = len(parts) > 1 and size_of_parts(parts) > SMALL_BYTES
    return name, bodies.keep(name, *parts) if large else b"".join(parts)


def _batches(pieces: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Pieces, as many as go together."""
    held, size = list[tuple[str, bytes]](), 0
    for name, content in pieces:
        held.append((name, content))
        size += len(content)
        if len(held) == MOST_AT_ONCE or size >= _FULL_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


class WalledIntake:
    """The replies to some messages of a run on a real server, none of more than `largest` bytes.

    `close` lets go of those that are still on their way. `bodies` is where large pieces are, if not with Flower, and
    `bell` what rings for replies: until it does, Flower is seldom asked for any.
    """

    def __init__(self, grid: Grid, largest: int, bodies: Bodies | None = None, bell: Bell | None = None) -> None:
        self._client: Any = grid._runtime_client  # type: ignore[attr-defined]  # the only way to pieces of replies
        self._asked: dict[str, Any] = {"node": Node(node_id=SUPERLINK_NODE_ID), "run_id": grid.run.run_id}
        self._largest = largest
        self._bodies = bodies
        self._bell = bell
        self._heard, self._asked_at, self._listened = -1, 0.0, self._rung()
        self._over, self._news = threading.Event(), threading.Event()
        self._coming: dict[str, Future[Taken]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="reply")

    @property
    def coming(self) -> frozenset[str]:
        """Numbers of messages whose replies are on their way."""
        return frozenset(self._coming)

    def take(self, numbers: Iterable[str]) -> list[tuple[str, Taken]]:
        """The replies that are there by now to the messages with these numbers, each with the number it answers."""
        wanted = {number for number in numbers if number not in self._coming}
        if wanted and self._is_worth_asking():
            found = self._client.PullMessages(PullAppMessagesRequest(message_ids=sorted(wanted)))
            for sent, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                answered = sent.metadata.reply_to_message_id
                if answered in wanted:
                    self._coming[answered] = self._threads.submit(self._one, sent.metadata.message_id, tree)
                    self._coming[answered].add_done_callback(lambda _: self._news.set())
        done = [number for number, future in self._coming.items() if future.done()]
        return [(number, self._coming.pop(number).result()) for number in done]

    def _is_worth_asking(self) -> bool:
        rung, now = (-1 if self._bell is None else self._bell.rung()), time.monotonic()
        if rung == self._heard != -1 and now - self._asked_at < _ASK_ANYWAY_S:
            return False
        self._heard, self._asked_at = rung, now
        return True

    def wait(self, seconds: float) -> None:
        """Until a reply is there, or the bell has rung, but no longer than this."""
        self._until(self._news, self._listened, seconds)
        self._news.clear()
        self._listened = self._rung()

    def _until(self, event: threading.Event, heard: int, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not event.wait(min(left, _LISTEN_S)):
            if self._rung() != heard:
                return

    def _rung(self) -> int:
        return 0 if self._bell is None else self._bell.rung()

    def close(self) -> None:
        """Wait for nothing any more."""
        self._over.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def forget(self, numbers: Iterable[str]) -> None:
        """Have the server forget messages that nobody waits for any more, and what answers them, now or later."""
        for number in numbers:
            self._confirm(number)

    def _confirm(self, name: str) -> None:
        self._client.ConfirmMessageReceived(ConfirmMessageReceivedRequest(message_object_id=name, **self._asked))

    def _one(self, name: str, tree: ObjectTree) -> Taken:
        """The message with this name, out of its pieces, which the server need not keep, whatever became of it."""
        taken = self._put_together(name, tree)
        self._confirm(name)
        return taken

    def _put_together(self, name: str, tree: ObjectTree) -> Taken:
        rung = 0

        def pull(names: Collection[str], take: Take) -> None:
            nonlocal rung
            rung = self._rung()  # what rings while Flower answers is not missed
            self._pull(names, take)

        def wait() -> None:
            self._until(self._over, rung, _ASK_ANYWAY_S if self._bell is None else _PIECES_ANYWAY_S)

        try:
            contents = gathered(tree, pull, self._largest, wait)
            message = put_together(name, contents, self._largest)
        except ObjectPullError:
            return Code.UNREACHABLE
        except TooLargeMessage:
            return Code.TOO_LARGE
        except httpx.HTTPError:
            raise  # this is the server's trouble, and no site's
        except ENDS:
            raise
        except BaseException:
            return Code.GARBAGE
        whole = isinstance(message, Message) and (message.has_error() or isinstance(message.content, RecordDict))
        return message if whole else Code.GARBAGE  # type: ignore[return-value]  # whole says so

    def _pull(self, names: Collection[str], take: Take) -> None:
        """What the pieces of these names hold."""
        if self._over.is_set():
            raise ObjectPullError(next(iter(names)), "nobody waits for it any more")
        answer = self._client._unary_unary(
            path=TAKE_PIECES,
            rpc_method=TAKE_PIECES,
            request=PullObjectRequest(object_id=joined(names), **self._asked),
            response_type=PullObjectResponse,
        )
        for frame, held in unframed(answer.object_content):
            if frame.condition is Condition.NONE:
                raise ObjectPullError(frame.name, "it is not there")
            content: bytes | None = None
            if frame.condition is Condition.HERE:
                content = held if self._bodies is None else self._bodies.content(held)
                # What comes from a disk is as it was written, or not there.
                if content is None or (content is not held and not is_of(frame.name, content)):
                    raise ObjectPullError(frame.name, "it is not there any more")
            take(frame.name, content)
