"""Sending messages over a Flower Grid and waiting for the replies, though a message may be lost on its way.

Flower takes a message for delivered when a site has asked for it, and if the server is killed in that moment the site
never has it: both would wait for ever. A site answers its messages in the order in which they were sent, so a second,
small message that is answered while the first is not shows that the first is lost; it is then sent again. A site that
gets it twice after all answers twice alike, and the second answer is not waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fedgraft.common.protocol.instructions import Code

_POLL_S = 0.2
_PROBE_S = 30.0
"""After so long without an answer a site is asked whether it is still at work."""

_SELDOM = 10
"""So many times longer it takes until a site is asked again that has not answered the question."""

_GRACE_S = 3.0
"""So long the answer itself may come after the answer to the question."""

MakeProbe = Callable[[int], Message]
"""From a node to a small message that it answers."""

Taken = Message | Code
"""A reply, or why there is none that can be read."""


class Intake(Protocol):
    """Where replies come from."""

    @property
    def coming(self) -> frozenset[str]:
        """Numbers of messages whose replies are on their way."""

    def take(self, numbers: Iterable[str]) -> list[tuple[str, Taken]]:
        """The replies that are there by now to the messages with these numbers, each with the number it answers."""

    def close(self) -> None:
        """Wait for nothing any more."""


class PlainIntake:
    """The replies as a grid gives them, for sites that are simulated: nobody wrote their messages but this program."""

    coming: frozenset[str] = frozenset()

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def take(self, numbers: Iterable[str]) -> list[tuple[str, Taken]]:
        """All replies that there are."""
        return [(reply.metadata.reply_to_message_id, reply) for reply in self._grid.pull_messages(list(numbers))]

    def close(self) -> None:
        """There is nothing to let go of."""


@dataclass
class _Waiting:
    """One node's message, and what it was asked since."""

    message: Message
    ids: set[str]
    ask_at: float
    probe: str = ""
    lost_at: float | None = field(default=None)


def collect(
    grid: Grid,
    messages: Mapping[int, Message],
    deadline_s: float | None,
    probe: MakeProbe | None = None,
    intake: Intake | None = None,
) -> Iterator[tuple[int, Taken]]:
    """Push the messages to their nodes, and give each reply as it comes, or why there is none.

    Ends when all replied, or at the deadline. With `probe`, messages that were lost are sent again. `intake` is where
    replies come from, if not from the grid itself; it is closed in the end.
    """
    intake = intake or PlainIntake(grid)
    try:
        yield from _collect(grid, messages, deadline_s, probe, intake)
    finally:
        intake.close()


def _collect(
    grid: Grid, messages: Mapping[int, Message], deadline_s: float | None, probe: MakeProbe | None, intake: Intake
) -> Iterator[tuple[int, Taken]]:
    ends = time.monotonic() + deadline_s if deadline_s is not None else None
    waiting: dict[int, _Waiting] = {}
    for number, (node, message) in zip(grid.push_messages(messages.values()), messages.items(), strict=True):
        if number:
            waiting[node] = _Waiting(message, {number}, time.monotonic() + _PROBE_S)
        else:
            yield node, Code.UNREACHABLE
    while waiting:
        asked = {number: node for node, one in waiting.items() for number in (*one.ids, one.probe) if number}
        replies = intake.take(asked)
        for number, reply in replies:
            # A reply's sender is what the sender says: only the message that it answers is certain.
            whose = asked.get(number)
            if whose is None or whose not in waiting:
                continue
            if number == waiting[whose].probe:
                _note(waiting[whose], reply)
            else:
                del waiting[whose]
                yield whose, reply
        if ends is not None and time.monotonic() > ends:
            return
        if probe is not None:
            quiet = {node: one for node, one in waiting.items() if one.ids.isdisjoint(intake.coming)}
            _look_after(grid, quiet, probe, ends)
        if not replies:
            time.sleep(_POLL_S)


def _note(one: _Waiting, reply: Taken) -> None:
    now = time.monotonic()
    one.probe, one.ask_at = "", now + _PROBE_S
    # An error is not the site's answer, and says nothing.
    one.lost_at = now + _GRACE_S if isinstance(reply, Message) and reply.has_content() else None


def _look_after(grid: Grid, waiting: Mapping[int, _Waiting], probe: MakeProbe, ends: float | None) -> None:
    now = time.monotonic()
    for node, one in waiting.items():
        if one.lost_at is not None and now > one.lost_at:
            one.lost_at, one.ask_at = None, now + _PROBE_S
            one.ids |= set(filter(None, grid.push_messages([_again(one.message, node, ends)])))
        elif one.lost_at is None and now > one.ask_at:
            # The question may get lost as well; a site that is at work answers them all when it is done.
            one.probe = next(iter(grid.push_messages([probe(node)])), "") or ""
            one.ask_at = now + _SELDOM * _PROBE_S


def _again(message: Message, node: int, ends: float | None) -> Message:
    ttl = None if ends is None else max(1.0, ends - time.monotonic())
    meta = message.metadata
    return Message(message.content, dst_node_id=node, message_type=meta.message_type, ttl=ttl, group_id=meta.group_id)
