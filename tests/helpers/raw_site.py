"""A site played by hand: Flower's Fleet API over the gate, request by request, honest or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, get_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.common.identity.keys import NodeKey, public_pem
from fedgraft.common.messages.frames import ENVELOPE, Condition, framed, joined, unframed
from helpers.gated import signed


class RawSite:
    """One node with its key; `client` reaches the gate, or Flower itself."""

    def __init__(self, client: httpx.Client, key: NodeKey, node: int) -> None:
        self._client, self._key, self.node = client, key, node
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, node

    def call(self, name: str, request: Any) -> httpx.Response:
        return self._client.post(f"/v1/fleet/{name}", content=request.SerializeToString(), headers=self._headers())

    def _headers(self) -> dict[str, str]:
        return signed(self._key) | {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}

    def activate(self) -> None:
        request = ActivateNodeRequest(public_key=public_pem(self._key), heartbeat_interval=1800.0)
        self.call("activate-node", request).raise_for_status()

    def pull(self) -> Message | None:
        """The next message, without what it holds."""
        answer = self.call("pull-messages", PullMessagesRequest(node=Node(node_id=self.node)))
        answer.raise_for_status()
        found = PullMessagesResponse.FromString(answer.content).messages_list
        return message_from_proto(found[0]) if found else None

    def confirm(self, number: str, run: int) -> int:
        request = ConfirmMessageReceivedRequest(node=Node(node_id=self.node), run_id=run, message_object_id=number)
        return self.call("confirm-message-received", request).status_code

    def has(self, name: str, asked: Message) -> bool:
        """Whether the server gives this site the piece of this name."""
        request = PullObjectRequest(node=Node(node_id=self.node), run_id=asked.metadata.run_id, object_id=name)
        answer = self.call("pull-object", request)
        answer.raise_for_status()
        return bool(PullObjectResponse.FromString(answer.content).object_found)

    def conditions(self, names: Sequence[str], asked: Message) -> dict[str, Condition]:
        """How pieces are, for this site, when it asks for many at once."""
        request = PullObjectRequest(node=Node(node_id=self.node), run_id=asked.metadata.run_id, object_id=joined(names))
        answer = self.call("pull-pieces", request)
        answer.raise_for_status()
        return {frame.name: frame.condition for frame, _ in unframed(answer.content)}

    def push_many(self, pieces: Sequence[tuple[str, bytes]], run: int, session: str, node: int | None = None) -> bool:
        """Whether the server has these pieces, sent in one request, which `node` makes."""
        request = PushObjectRequest(
            node=Node(node_id=self.node if node is None else node), run_id=run, session_id=session
        )
        content = framed([(ENVELOPE, request.SerializeToString()), *pieces])
        answer = self._client.post("/v1/fleet/push-pieces", content=content, headers=self._headers())
        answer.raise_for_status()
        return bool(PushObjectResponse.FromString(answer.content).stored)

    def reply(self, asked: Message, text: str, **told: Any) -> Message:
        """A reply to a message, with other metadata if asked."""
        content = RecordDict({"words": ConfigRecord({"json": text})})
        honest = Message(content, reply_to=asked)
        for key, value in ({"src_node_id": self.node, "dst_node_id": SUPERLINK_NODE_ID} | told).items():
            honest.metadata.__dict__[f"_{key}"] = value
        return honest

    def push(
        self,
        inner: Message,
        outer: Mapping[str, Any] | None = None,
        *,
        node: int | None = None,
        pieces: Mapping[str, bytes] | None = None,
        objects: bool = True,
        most: int | None = None,
        meanwhile: Callable[[], object] = lambda: None,
        times: int = 1,
    ) -> int:
        """Push a reply; `outer` is what its envelope says otherwise, `node` who asks. The status, 0 if not taken.

        `pieces` are sent in place of the reply's own; the first of them is the message. No more than `most` are sent,
        each but the last so many `times`, after what happens `meanwhile`.
        """
        contents = dict(
            pieces or {name: one.deflate() for name, one in reversed(get_all_nested_objects(inner).items())}
        )
        tree = _tree(contents) if pieces else get_object_tree(inner)
        envelope = message_to_proto(remove_content_from_message(make_message(inner.metadata, inner.content)))
        envelope.metadata.message_id = tree.object_id
        for key, value in (outer or {}).items():
            setattr(envelope.metadata, key, value)
        request = PushMessagesRequest(
            node=Node(node_id=self.node if node is None else node),
            messages_list=[envelope],
            message_object_trees=[tree],
        )
        answer = self.call("push-messages", request)
        if answer.status_code != 200:
            return answer.status_code
        taken = PushMessagesResponse.FromString(answer.content)
        meanwhile()
        wanted = list(taken.objects_to_push[:most] if objects else ())
        # With the last one the run has it all, and the server forgets it.
        for name in [name for name in wanted[:-1] for _ in range(times)] + wanted[-1:]:
            piece = PushObjectRequest(
                node=Node(node_id=self.node),
                run_id=inner.metadata.run_id,
                object_id=name,
                object_content=contents[name],
                session_id=taken.session_id,
            )
            answer = self.call("push-object", piece)
            assert PushObjectResponse.FromString(answer.content).stored, answer.status_code
        return 200 if taken.objects_to_push else 0


def _tree(contents: Mapping[str, bytes]) -> ObjectTree:
    """The pieces as their heads say that they hang together, from the first one on."""

    def grown(name: str) -> ObjectTree:
        named = contents[name].partition(b"\x00")[0].decode().split(" ")[1]
        return ObjectTree(object_id=name, children=[grown(child) for child in named.split(",") if child])

    return grown(next(iter(contents)))


def piece(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    """A piece as Flower stores it: its name and content."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body
    return get_object_id(content), content
