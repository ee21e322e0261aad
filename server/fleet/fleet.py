"""The round loop's port to the sites, and its implementation over a Flower Grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedgraft.common.base.errors import ENDS, RunError
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.answers import SiteAnswer
from fedgraft.common.protocol.instructions import (
    Answer,
    Arrays,
    Code,
    Digests,
    Greeting,
    Hello,
    Instruction,
    LastDigest,
    Refusal,
)
from fedgraft.server.fleet.presence import Presence
from fedgraft.server.fleet.transport import Intake, Taken, collect

NODE_EXPIRED = 9_001
"""Error code of our own grids for a site that let its deadline pass."""


_GREET_S = 1800.0
"""How long deployed sites may take to read their data for the first time."""

_LATER_S, _AGAIN_S = 20.0, 60.0
"""How long all others wait for a deployed site that comes later, and after what time it is asked again."""


@dataclass(frozen=True)
class Reply:
    """One site's answer to an instruction and the payload it took, in bytes."""

    site: str
    answer: Answer
    bytes_up: int
    bytes_down: int


class Fleet(Protocol):
    """The sites of a run by name: greets them, sends instructions, gives replies."""

    def greet(self, hello: Hello) -> Mapping[str, Greeting | Refusal]:
        """Say hello to every site that is there and has not greeted yet; what each answered.

        A site that should be there, and is not, is unreachable.
        """

    def expects(self, site: str) -> bool:
        """Whether a site should take part from the start; others may come, and nobody waits for them."""

    def exchange(self, instructions: Mapping[str, Instruction], deadline_s: float | None) -> Iterator[Reply]:
        """Send every site its instruction; its reply, as it comes. Every site has one, if only a refusal."""

    def away(self, sites: Collection[str]) -> set[str]:
        """Those of these sites that nothing is heard of at this moment."""

    def wait_for(self, sites: Collection[str], count: int, *, patiently: bool) -> bool:
        """Wait until `count` of these sites are heard of, `patiently` or for as long as a round does; whether they are.

        False at once where no site comes back by itself.
        """


class GridFleet:
    """A fleet over a Flower Grid.

    `expires` says that the grid itself answers for sites that let their deadline pass, counted from when a site's
    turn comes, and that all sites are on this machine; otherwise the deadline runs from the sending. `views` as for
    `wire.pack_tensors`. `presence` knows the nodes that are online with their names, if these are known beforehand:
    then no site can pass for another, and one that is away may come back. `intake` makes what takes the replies to each
    exchange, if not the grid itself. `expected` are the sites that should be there, if these are known beforehand.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        expires: bool = False,
        views: bool = False,
        presence: Presence | None = None,
        intake: Callable[[], Intake] | None = None,
        expected: Collection[str] = (),
    ) -> None:
        self._grid = grid
        self._expires = expires
        self._views = views
        self._presence = presence
        self._intake: Callable[[], Intake | None] = intake or (lambda: None)
        self._expected = frozenset(expected)
        self._nodes: dict[str, int] = {}
        self._asked: dict[int, float] = {}

    def greet(self, hello: Hello) -> Mapping[str, Greeting | Refusal]:
        """Say hello to every node of the grid that has not greeted yet. RunError if two call themselves the same.

        Simulated sites are asked once. Deployed ones may come later, and may change their mind after a refusal.
        """
        if self._presence is not None:
            self._presence.wait_for_anybody()
        names = self._presence.online() if self._presence is not None else None
        present = list(self._grid.get_node_ids() if names is None else names)
        patience_s = None if names is None else (_LATER_S if self._asked else _GREET_S)
        now = time.monotonic()
        nodes = [node for node in present if self._due(node, now)]
        records = wire.pack_hello(hello) if nodes else RecordDict()
        messages = {node: Message(records, dst_node_id=node, message_type=wire.HELLO, ttl=patience_s) for node in nodes}
        self._asked |= dict.fromkeys(nodes, now)
        away = self._expected - self._nodes.keys() - set((names or {}).values())
        answers: dict[str, Greeting | Refusal] = {site: Refusal(0, Code.UNREACHABLE, site) for site in away}
        for node, reply in self._collect(messages, patience_s):
            answer = _read_greeting(reply)
            if names is not None and isinstance(answer, Greeting) and answer.site != names[node]:
                answer = Refusal(0, Code.WRONG_NAME)
            name = (answer.site if names is None else names[node]) or f"node {present.index(node)}"
            if isinstance(answer, Refusal) and name in answers:
                name = f"node {present.index(node)}"
            # A site that was enrolled may come back with other keys; nobody else can have its name.
            if name in answers or (names is None and isinstance(answer, Greeting) and name in self._nodes):
                raise RunError(f"Two sites are called {name!r}.", fix="Give each site a name of its own.")
            answers[name] = answer
            if isinstance(answer, Greeting):
                self._nodes[name] = node
        return dict(sorted(answers.items()))

    def ask(
        self, hello: Hello, patience_s: float = _GREET_S, *, there: Collection[str] = ()
    ) -> Mapping[str, SiteAnswer | Refusal]:
        """Ask every site that is there what it could supply for a study; what each answered, by its name.

        A site that should be there, and is not, is unreachable; those that were `there` a moment ago are waited for as
        a round does. RunError if two call themselves the same.
        """
        self.wait_for(there, len(there), patiently=False)
        names = self._presence.online() if self._presence is not None else None
        present = list(self._grid.get_node_ids() if names is None else names)
        away = self._expected - set((names or {}).values())
        answers: dict[str, SiteAnswer | Refusal] = {site: Refusal(0, Code.UNREACHABLE, site) for site in away}
        records = wire.pack_hello(hello)
        messages = {node: Message(records, dst_node_id=node, message_type=wire.ASK, ttl=patience_s) for node in present}
        for node, reply in self._collect(messages, patience_s):
            answer = _read_supply(reply)
            if names is not None and isinstance(answer, SiteAnswer) and answer.site != names[node]:
                answer = Refusal(0, Code.WRONG_NAME)
            name = (answer.site if names is None else names[node]) or f"node {present.index(node)}"
            if name in answers:
                raise RunError(f"Two sites are called {name!r}.", fix="Give each site a name of its own.")
            answers[name] = answer
        late = set((names or {}).values()) - answers.keys()
        answers |= {site: Refusal(0, Code.DEADLINE, site) for site in late}
        return dict(sorted(answers.items()))

    def expects(self, site: str) -> bool:
        """Whether a site should take part from the start: all, unless these are known beforehand."""
        return not self._expected or site in self._expected

    def _due(self, node: int, now: float) -> bool:
        if node not in self._asked:
            return True
        return self._presence is not None and node not in self._nodes.values() and now - self._asked[node] > _AGAIN_S

    def exchange(self, instructions: Mapping[str, Instruction], deadline_s: float | None) -> Iterator[Reply]:
        """Send the instructions; tensors that several sites lack are packed once."""
        packed: dict[tuple[tuple[str, int], ...], ArrayRecord] = {}
        messages, sizes, names = {}, {}, {}
        for site, instruction in instructions.items():
            lacking = tuple((key, id(array)) for key, array in instruction.tensors.items())
            if lacking not in packed:
                packed[lacking] = wire.pack_tensors(instruction.tensors, views=self._views)
            records = wire.pack_instruction(instruction, packed[lacking])
            node = self._nodes[site]
            messages[node] = Message(
                records,
                dst_node_id=node,
                message_type=wire.VISIT,
                ttl=deadline_s,
                group_id=str(instruction.exchange),
            )
            sizes[site], names[node] = wire.size(records), site
        for node, reply in self._collect(messages, None if self._expires else deadline_s):
            site = names.pop(node)
            answer, up = _read_reply(reply, instructions[site].exchange)
            if self._expires and isinstance(answer, Refusal) and answer.code is Code.OUT_OF_MEMORY:
                raise RunError(
                    f"This machine's memory is not enough to simulate {site} in exchange {answer.exchange}.",
                    fix="Use fewer --workers, a smaller batch_size or a smaller backbone; continue with --resume.",
                )
            yield Reply(site, answer, up, sizes[site])
        for site in names.values():
            yield Reply(site, Refusal(instructions[site].exchange, Code.DEADLINE), 0, sizes[site])

    def away(self, sites: Collection[str]) -> set[str]:
        """Those of these sites that nothing is heard of at this moment; none of those that are simulated."""
        return set(sites) - set(self._presence.online().values()) if self._presence is not None else set()

    def wait_for(self, sites: Collection[str], count: int, *, patiently: bool) -> bool:
        """As `Presence.wait_for`; False at once for sites that are simulated."""
        return self._presence is not None and self._presence.wait_for(sites, count, patiently=patiently)

    def _collect(self, messages: Mapping[int, Message], deadline_s: float | None) -> Iterator[tuple[int, Taken]]:
        probe = _ping if self._presence is not None else None
        return collect(self._grid, messages, deadline_s, probe, self._intake(), self._presence)


def _ping(node: int) -> Message:
    return Message(RecordDict(), dst_node_id=node, message_type=wire.PING)


def _read_greeting(reply: Taken) -> Greeting | Refusal:
    if isinstance(reply, Code) or not reply.has_content():
        return Refusal(0, _why_none(reply))
    try:
        return wire.unpack_greeting(reply.content)
    except ENDS:
        raise
    except BaseException:  # the wall: nothing that a site sends ends a run
        return Refusal(0, Code.GARBAGE)


def _read_supply(reply: Taken) -> SiteAnswer | Refusal:
    if isinstance(reply, Code) or not reply.has_content():
        return Refusal(0, _why_none(reply))
    try:
        return wire.unpack_answer(reply.content)
    except ENDS:
        raise
    except BaseException:  # the wall, as above
        return Refusal(0, Code.GARBAGE)


def _read_reply(reply: Taken, exchange: int) -> tuple[Answer, int]:
    if isinstance(reply, Code) or not reply.has_content():
        return Refusal(exchange, _why_none(reply)), 0
    up = 0
    try:
        up = wire.size(reply.content)
        return wire.unpack_reply(reply.content), up
    except ENDS:
        raise
    except BaseException:  # the wall, as above
        return Refusal(exchange, Code.GARBAGE), up


def _why_none(reply: Taken) -> Code:
    if isinstance(reply, Code):
        return reply
    return Code.DEADLINE if reply.error.code == NODE_EXPIRED else Code.UNREACHABLE


class Lacking:
    """What sites lack of what goes to them in an exchange: worked out once for all that hold and get the same."""

    def __init__(self, digests: Digests) -> None:
        self._digest = LastDigest(digests)
        self._found: dict[tuple[int, int], tuple[Arrays, Arrays, Arrays, str]] = {}

    def of(self, going: Arrays, has: Arrays) -> tuple[Arrays, str]:
        """The entries of `going` that are not the very same arrays in `has`, and the digest of all others."""
        key = id(going), id(has)
        if key not in self._found:
            tensors = {key: array for key, array in going.items() if has.get(key) is not array}
            held = {key: array for key, array in going.items() if key not in tensors}
            self._found[key] = going, has, tensors, self._digest.of(held)
        return self._found[key][2:]

    def forget(self) -> None:
        """Let go of an exchange: what went out and what is held is put together anew for the next."""
        self._found = {}
