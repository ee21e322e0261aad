"""Who a request speaks for: a node may push replies to messages that were sent to it, as itself, and nothing else.

Flower holds a request's node against the key that signed it (`flwr.superlink.routers.fleet.node_auth`), and the sender
that a reply names against the node that its message was sent to (`store_message_res`). But nothing holds that sender
against the request's node, so that any node could answer for another whose message number it knows; and a message that
answers nothing is taken for an instruction of the coordinator's, if it says that it comes from there. What the pieces
of a reply say of sender and message is not looked at here: the run believes the server's own record instead
(`fleet.intake`).
"""

from __future__ import annotations

from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Metadata, ObjectTree
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

PUSH = "/v1/fleet/push-messages"
MOST_PIECES = 2048
"""Pieces of one reply; Flower makes one of every 5 MiB, and every piece is at most as large as a request."""


def speaks_for_itself(path: str, body: bytes) -> bool:
    """Whether a request that a site signed says nothing in another's name."""
    if path != PUSH:
        return True
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        return False
    messages, trees = request.messages_list, request.message_object_trees
    if len(messages) > 1 or len(messages) != len(trees):
        return False
    return all(_own(one.metadata, tree, request.node.node_id) for one, tree in zip(messages, trees, strict=True))


def _own(said: Metadata, tree: ObjectTree, node: int) -> bool:
    """Whether this is a node's own reply to the server, of pieces that hang on it."""
    return (
        said.src_node_id == node
        and said.dst_node_id == SUPERLINK_NODE_ID
        and bool(said.reply_to_message_id)
        and tree.object_id == said.message_id
        and _pieces(tree) <= MOST_PIECES
    )


def _pieces(tree: ObjectTree) -> int:
    """How many pieces there are, those that are named twice counted twice."""
    waiting, count = [tree], 1
    while waiting:
        count += len(children := waiting.pop().children)
        if count > MOST_PIECES:  # before anything is made of them
            break
        waiting.extend(children)
    return count
