"""Sending messages over a Flower Grid and waiting for the replies, though a message may be lost on its way.

Flower takes a message for delivered when a site has asked for it, and if the server is killed in that moment the site
never has it: both would wait for ever. A site answers its messages in the order in which they were sent, so a second,
small message that is answered while the first is not shows that the first is lost; it is then sent again. A site that
gets it twice after all answers twice alike, and the second answer is not waited for.

Flower answers by itself for a site that it has not heard of for 20 s, and forgets the message and whatever the site may
send yet. So where it is known who is there, nobody else is asked about; whoever comes back in time goes on with what it
had, or has it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedgraft.common.protocol.instructions import Code
from fedgraft.server.fleet.presence import Presence

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

    def wait(self, seconds: float) -> None:
        """Until there may be more to take, but no longer than this."""

    def forget(self, numbers: Iterable[str]) -> None:
        """Nobody waits any more for replies to the messages with these numbers."""

    def close(self) -> None:
        """Wait for nothing any more."""


class PlainIntake:
    """The replies as a grid gives them, for sites that are simulated: nobody wrote their messages but this program."""

    coming: frozenset[str] = frozenset()

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def take(self, numbers: Iterable[str]) -> list[tuple[str, Taken]]:
        """All replies that there are."""
        return [(reply.metadata.reply_to_message_id, reply) for reply in self._grid.pull_messages(numbers)]

    def wait(self, seconds: float) -> None:
        """All of it: nothing says that there is more."""
        time.sleep(seconds)

    def forget(self, numbers: Iterable[str]) -> None:
        """They end with the exchange."""

    def close(self) -> None:
        """There is nothing to let go of."""


@dataclass
class _Waiting:
    """One node's message, and what it was asked since. `away` says that it is not heard of at this moment."""

    message: Message
    ids: set[str]
    ask_at: float
    probe: str = ""
    lost_at: float | None = field(default=None)
    away: bool = False


def collect(
    grid: Grid,
    messages: Mapping[int, Message],
    deadline_s: float | None,
    probe: MakeProbe | None = None,
    intake: Intake | None = None,
    presence: Presence | None = None,
) -> Iterator[tuple[int, Taken]]:
    """Push the messages to their nodes, and give each reply as it comes, or why there is none.

    Ends when all replied, or at the deadline. With `probe`, messages that were lost are sent again. `intake` is where
    replies come from, if not from the grid itself; it is closed in the end. With `presence`, nodes that are not heard
    of are waited for as long as that says, and the deadline does not run while nobody is.
    """
    intake = intake or PlainIntake(grid)
    exchange = _Exchange(grid, probe, intake, presence)
    try:
        yield from exchange.run(messages, deadline_s)
        # A model would stay on the server's disk for each round in which a site was away, or late.
        intake.forget(exchange.unanswered)
    finally:
        intake.close()


class _Exchange:
    """Messages that are under way."""

    def __init__(self, grid: Grid, probe: MakeProbe | None, intake: Intake, presence: Presence | None) -> None:
        self._grid = grid
        self._probe = probe
        self._intake = intake
        self._presence = presence
        self._waiting: dict[int, _Waiting] = {}
        self.unanswered: set[str] = set()
        """Numbers of messages that were sent and had no reply."""
        self._ends: float | None = None
        self._asked: dict[str, int] | None = None

    def run(self, messages: Mapping[int, Message], deadline_s: float | None) -> Iterator[tuple[int, Taken]]:
        """As `collect`."""
        looked = time.monotonic()
        self._ends = looked + deadline_s if deadline_s is not None else None
        for node in self._push(messages):
            yield node, Code.UNREACHABLE
        while self._waiting:
            for node in self._look(looked):
                yield node, Code.UNREACHABLE
            looked = time.monotonic()
            replies = list(self._replies())
            yield from replies
            if self._ends is not None and time.monotonic() > self._ends:
                return
            if self._probe is not None:
                self._look_after(self._probe)
            if not replies:
                self._intake.wait(_POLL_S)

    def _push(self, messages: Mapping[int, Message]) -> list[int]:
        """Send the messages; the nodes that none can be sent to, among them those that have been away for long."""
        lost = [node for node in messages if self._presence is not None and self._presence.lost(node)]
        sent = {node: message for node, message in messages.items() if node not in lost}
        for number, (node, message) in zip(self._grid.push_messages(sent.values()), sent.items(), strict=True):
            if number:
                self.unanswered.add(number)
                self._waiting[node] = _Waiting(message, {number}, time.monotonic() + _PROBE_S)
            else:
                lost.append(node)
        return lost

    def _look(self, before: float) -> list[int]:
        """See who is there; those that are not waited for any more. `before` is when this was asked last."""
        if self._presence is None:
            return []
        online, now = self._presence.online(), time.monotonic()
        if not online and self._ends is not None:
            self._ends += now - before
        for node, one in self._waiting.items():
            if one.away and node in online:  # is it at work still, or was it started again, and knows of nothing?
                one.probe, one.lost_at, one.ask_at = "", None, now
            one.away = node not in online
        lost = [node for node, one in self._waiting.items() if one.away and self._presence.lost(node)]
        for node in lost:
            del self._waiting[node]
        return lost

    def _replies(self) -> Iterator[tuple[int, Taken]]:
        asked = self._numbers()
        for number, reply in self._intake.take(asked):
            # A reply's sender is what the sender says: only the message that it answers is certain.
            self.unanswered.discard(number)
            whose = asked.get(number)
            if whose is None or whose not in self._waiting:
                continue
            one = self._waiting[whose]
            if number == one.probe:
                _note(one, reply)
            elif self._presence is not None and _is_away(reply):
                one.ids.discard(number)  # Flower has forgotten that message
                one.away = True
                self._presence.missed(whose)
            else:
                for known in (*one.ids, one.probe):
                    asked.pop(known, None)
                del self._waiting[whose]
                yield whose, reply

    def _numbers(self) -> dict[str, int]:
        """By the numbers of messages that may be answered now the nodes that were asked.

        Of nodes that are never away, since they are on this machine, and of which nobody asks whether they are there,
        it only loses those that have answered.
        """
        if self._presence is None and self._probe is None and self._asked is not None:
            return self._asked
        coming = self._intake.coming
        self._asked = {
            number: node
            for node, one in self._waiting.items()
            for number in (*one.ids, one.probe)
            if number and (not one.away or number in coming)
        }
        return self._asked

    def _look_after(self, probe: MakeProbe) -> None:
        now = time.monotonic()
        for node, one in self._waiting.items():
            if one.away or not one.ids.isdisjoint(self._intake.coming):
                continue
            if one.lost_at is not None and now > one.lost_at:
                one.lost_at, one.ask_at = None, now + _PROBE_S
                again = set(filter(None, self._grid.push_messages([_again(one.message, node, self._ends)])))
                one.ids |= again
                self.unanswered |= again
            elif one.lost_at is None and now > one.ask_at:
                # The question may get lost as well; a site that is at work answers them all when it is done.
                one.probe = next(iter(self._grid.push_messages([probe(node)])), "") or ""
                one.ask_at = now + _SELDOM * _PROBE_S
                self.unanswered |= {one.probe} - {""}


def _note(one: _Waiting, reply: Taken) -> None:
    now = time.monotonic()
    one.probe, one.ask_at = "", now + _PROBE_S
    # An error is not the site's answer, and says nothing.
    one.lost_at = now + _GRACE_S if isinstance(reply, Message) and reply.has_content() else one.lost_at


def _is_away(reply: Taken) -> bool:
    """Whether this is Flower's own answer, for a node that it does not hear of."""
    return isinstance(reply, Message) and reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE


def _again(message: Message, node: int, ends: float | None) -> Message:
    ttl = None if ends is None else max(1.0, ends - time.monotonic())
    meta = message.metadata
    return Message(message.content, dst_node_id=node, message_type=meta.message_type, ttl=ttl, group_id=meta.group_id)
