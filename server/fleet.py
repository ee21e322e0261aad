"""The round loop's port to the sites, and its implementation over a Flower Grid."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from common import wire
from common.bundle import WireError
from common.errors import RunError
from common.orders import Answer, Arrays, Code, Greeting, Hello, Order, Refusal

_POLL_S = 0.2
NODE_EXPIRED = 9_001
"""Error code of our own grids for a site that let its deadline pass."""


@dataclass(frozen=True)
class Reply:
    """One site's answer to an order and the payload it took, in bytes."""

    site: str
    answer: Answer
    bytes_up: int
    bytes_down: int


class Fleet(Protocol):
    """All sites of a run, by name."""

    def greet(self, hello: Hello) -> Mapping[str, Greeting | Refusal]:
        """Say hello to every site there is; what each answered."""

    def exchange(self, orders: Mapping[str, Order], deadline_s: float | None) -> Iterator[Reply]:
        """Send every site its order; its reply, as it comes. Every site is answered for, if only with a refusal."""


class GridFleet:
    """A fleet over a Flower Grid.

    `expires` says that the grid itself answers for sites that let their deadline pass, counted from when a site's
    turn comes; otherwise the deadline runs from the sending. `views` as for `wire.pack_tensors`.
    """

    def __init__(self, grid: Grid, *, expires: bool = False, views: bool = False) -> None:
        self._grid = grid
        self._expires = expires
        self._views = views
        self._nodes: dict[str, int] = {}

    def greet(self, hello: Hello) -> Mapping[str, Greeting | Refusal]:
        """Say hello to every node of the grid. RunError if two call themselves the same."""
        nodes = list(self._grid.get_node_ids())
        records = wire.pack_hello(hello)
        messages = {node: Message(records, dst_node_id=node, message_type=wire.HELLO) for node in nodes}
        answers: dict[str, Greeting | Refusal] = {}
        for node, reply in self._collect(messages, None):
            answer = _read_greeting(reply)
            name = answer.site or f"node {nodes.index(node)}"
            if isinstance(answer, Refusal) and name in answers:
                name = f"node {nodes.index(node)}"
            if name in answers:
                raise RunError(f"Two sites are called {name!r}.", fix="Give each site a name of its own.")
            answers[name] = answer
            self._nodes[name] = node
        return dict(sorted(answers.items()))

    def exchange(self, orders: Mapping[str, Order], deadline_s: float | None) -> Iterator[Reply]:
        """Send the orders; tensors that several sites lack are packed once."""
        packed: dict[tuple[str, ...], ArrayRecord] = {}
        messages, sizes, names = {}, {}, {}
        for site, order in orders.items():
            lacking = tuple(order.tensors)
            if lacking not in packed:
                packed[lacking] = wire.pack_tensors(order.tensors, views=self._views)
            records = wire.pack_order(order, packed[lacking])
            node = self._nodes[site]
            messages[node] = Message(
                records,
                dst_node_id=node,
                message_type=wire.VISIT,
                ttl=deadline_s,
                group_id=str(order.exchange),
            )
            sizes[site], names[node] = wire.size(records), site
        for node, reply in self._collect(messages, None if self._expires else deadline_s):
            site = names.pop(node)
            answer, up = _read_reply(reply, orders[site].exchange)
            yield Reply(site, answer, up, sizes[site])
        for site in names.values():
            yield Reply(site, Refusal(orders[site].exchange, Code.DEADLINE), 0, sizes[site])

    def _collect(self, messages: Mapping[int, Message], deadline_s: float | None) -> Iterator[tuple[int, Message]]:
        """Push the messages, and give each reply as it comes, with the node that was asked."""
        started = time.monotonic()
        sent = dict(zip(self._grid.push_messages(messages.values()), messages, strict=True))
        while sent:
            replies = list(self._grid.pull_messages(list(sent)))
            for reply in replies:
                # An error's sender is not always the site: only the message it answers is certain.
                node = sent.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    yield node, reply
            if deadline_s is not None and time.monotonic() - started > deadline_s:
                return
            if not replies:
                time.sleep(_POLL_S)


def _read_greeting(reply: Message) -> Greeting | Refusal:
    if not reply.has_content():
        return Refusal(0, _error_code(reply))
    try:
        return wire.unpack_greeting(reply.content)
    except WireError:
        return Refusal(0, Code.GARBAGE)


def _read_reply(reply: Message, exchange: int) -> tuple[Answer, int]:
    if not reply.has_content():
        return Refusal(exchange, _error_code(reply)), 0
    up = wire.size(reply.content)
    try:
        return wire.unpack_reply(reply.content), up
    except WireError:
        return Refusal(exchange, Code.GARBAGE), up


def _error_code(reply: Message) -> Code:
    return Code.DEADLINE if reply.error.code == NODE_EXPIRED else Code.UNREACHABLE


def lacking(state: Arrays, has: Arrays) -> Arrays:
    """Entries of `state` that are not the very same arrays in `has`."""
    return {key: array for key, array in state.items() if has.get(key) is not array}
