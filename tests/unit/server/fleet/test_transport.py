"""Messages that are lost on their way are noticed and sent again; those that are at work are left alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.common.protocol.instructions import Code
from fedgraft.server.fleet import presence
from fedgraft.server.fleet import transport as post
from fedgraft.server.fleet.presence import Presence
from fedgraft.server.fleet.transport import collect


class Site(Grid):
    """One node that answers in order, after `work` looks at each message, but never gets those numbered `lost`."""

    def __init__(self, work: dict[str, int], lost: set[int] = frozenset(), unknown: set[int] = frozenset()) -> None:
        self.work, self.lost, self.unknown = work, lost, unknown
        self.queue: list[tuple[str, Message]] = []
        self.sent: list[str] = []
        self.done: dict[str, Message] = {}
        self.looks = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        numbers = []
        for message in messages:
            self.sent.append(message.metadata.message_type)
            number = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = number
            if len(self.sent) in self.unknown:
                number = ""
            elif len(self.sent) not in self.lost:
                self.queue.append((number, message))
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.looks += 1
        if self.queue:
            number, message = self.queue[0]
            if self.looks >= self.work[message.metadata.message_type]:
                self.queue.pop(0)
                self.looks = 0
                self.done[number] = Message(RecordDict({"n": ConfigRecord({"id": number})}), reply_to=message)
        return [self.done.pop(number) for number in message_ids if number in self.done]

    def run(self) -> Any: ...
    def set_run(self, run: Any) -> None: ...
    def create_message(self, *args: Any, **kwargs: Any) -> Any: ...
    def get_node_ids(self) -> Iterable[int]: ...
    def send_and_receive(self, *args: Any, **kwargs: Any) -> Any: ...


class Clock:
    """Time that passes only while somebody sleeps, so that no other process of the machine has a say in it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(post, "time", made)
    monkeypatch.setattr(presence, "time", made)
    monkeypatch.setattr(post, "_POLL_S", 0.01)
    monkeypatch.setattr(post, "_PROBE_S", 0.1)
    monkeypatch.setattr(post, "_GRACE_S", 0.05)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    return made


def instruction() -> dict[int, Message]:
    return {7: Message(RecordDict({"o": ConfigRecord({"x": 1})}), dst_node_id=7, message_type="train.visit")}


def probe(node: int) -> Message:
    return Message(RecordDict({"h": ConfigRecord({"y": 2})}), dst_node_id=node, message_type="query.hello")


def answers(site: Site, deadline_s: float | None = 5.0) -> list[tuple[int, str | None]]:
    found = collect(site, instruction(), deadline_s, probe)
    return [(node, reply if isinstance(reply, Code) else str(reply.content["n"]["id"])) for node, reply in found]


def test_a_lost_message_is_sent_again_and_answered():
    site = Site({"train.visit": 1, "query.hello": 1}, lost={1})
    assert answers(site) == [(7, "m3")]
    assert site.sent == ["train.visit", "query.hello", "train.visit"]


def test_a_lost_probe_is_asked_again():
    site = Site({"train.visit": 1, "query.hello": 1}, lost={1, 2})
    assert answers(site) == [(7, "m4")]
    assert site.sent == ["train.visit", "query.hello", "query.hello", "train.visit"]


def test_a_site_that_is_at_work_is_asked_once_and_gets_nothing_twice():
    site = Site({"train.visit": 40, "query.hello": 1})
    assert answers(site) == [(7, "m1")]
    assert site.sent == ["train.visit", "query.hello"]


def test_a_quick_site_is_asked_nothing():
    site = Site({"train.visit": 1, "query.hello": 1})
    assert answers(site) == [(7, "m1")]
    assert site.sent == ["train.visit"]


def test_a_message_that_cannot_be_sent_is_answered_for():
    assert answers(Site({}, unknown={1})) == [(7, Code.UNREACHABLE)]


def test_the_deadline_ends_the_wait():
    assert answers(Site({"train.visit": 10**6, "query.hello": 1}), 0.3) == []


def test_an_error_in_answer_to_a_probe_says_nothing_of_the_message():
    class Gone(Site):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            self.looks += 1
            if self.queue and self.queue[0][1].metadata.message_type == "query.hello":
                number, message = self.queue.pop(0)
                self.done[number] = Message(Error(5, "Node Unavailable"), reply_to=message)
            return [self.done.pop(number) for number in message_ids if number in self.done]

    site = Gone({}, lost={1})
    assert answers(site, 0.6) == []
    assert site.sent.count("train.visit") == 1


class Flower(Site):
    """As Flower: a node that is away gets nothing, and whoever asks about it is told so, and the message forgotten."""

    def __init__(self, work: dict[str, int]) -> None:
        super().__init__(work)
        self.away, self.asked_in_vain = False, 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if not self.away:
            return super().pull_messages(message_ids)
        found = [message for message in self.queue if message[0] in message_ids]
        self.asked_in_vain += bool(found)
        self.queue = [one for one in self.queue if one not in found]
        return [Message(Error(5, "Node Unavailable"), reply_to=message) for _, message in found]


class Sight:
    """When the node is heard of, in looks; Flower's own word comes first where `late`."""

    def __init__(self, grid: Flower, away: range, others: bool = True, *, late: bool = False) -> None:
        self.grid, self.away, self.others, self.late, self.looks = grid, away, others, late, 0

    def __call__(self) -> dict[int, str]:
        self.looks += 1
        self.grid.away = self.looks in self.away
        gone = self.grid.away and not (self.late and self.looks == self.away.start)
        return ({} if gone else {7: "north"}) | ({8: "south"} if self.others else {})


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_LOOK_S", 0.0)


def seen(grid: Flower, sight: Sight, deadline_s: float | None = None, patience_s: float = 5.0) -> list[Any]:
    found = collect(
        grid, instruction(), deadline_s, probe, presence=Presence(sight, patience_s, 0.3, post.time.monotonic)
    )
    return [reply if isinstance(reply, Code) else str(dict(reply.content["n"])) for _, reply in found]


@pytest.mark.usefixtures("_at_once")
def test_a_site_that_is_away_is_not_asked_about_and_goes_on_where_it_was():
    grid = Flower({"train.visit": 12, "query.hello": 1})
    assert seen(grid, Sight(grid, range(3, 15))) == ["{'id': 'm1'}"]
    assert grid.asked_in_vain == 0
    assert grid.sent.count("train.visit") == 1


@pytest.mark.usefixtures("_at_once")
def test_a_message_that_flower_has_forgotten_is_sent_again_once_the_site_is_back():
    grid = Flower({"train.visit": 12, "query.hello": 1})
    found = seen(grid, Sight(grid, range(3, 15), late=True))
    assert grid.asked_in_vain == 1
    assert grid.sent.count("train.visit") == 2
    second = [number for number, kind in enumerate(grid.sent, start=1) if kind == "train.visit"][1]
    assert found == [f"{{'id': 'm{second}'}}"]


@pytest.mark.usefixtures("_at_once")
def test_a_site_that_does_not_come_back_costs_the_round_its_part_alone():
    grid = Flower({"train.visit": 12, "query.hello": 1})
    assert seen(grid, Sight(grid, range(3, 10**6))) == [Code.UNREACHABLE]


@pytest.mark.usefixtures("_at_once")
def test_one_that_has_long_been_away_is_sent_nothing_to_run_after(clock: Clock):
    grid = Flower({"train.visit": 1})
    there = Presence(Sight(grid, range(1, 10**6)), 5.0, 0.3, clock.monotonic)
    clock.sleep(0.4)
    assert [reply for _, reply in collect(grid, instruction(), None, probe, presence=there)] == [Code.UNREACHABLE]
    assert grid.sent == []


@pytest.mark.usefixtures("_at_once")
def test_an_outage_of_all_is_waited_out_and_the_deadline_does_not_run(clock: Clock):
    """Away for longer than a site alone may be, and for longer than the deadline."""
    grid = Flower({"train.visit": 12, "query.hello": 1})
    sight, began = Sight(grid, range(3, 200), others=False), clock.now
    assert seen(grid, sight, deadline_s=0.5) == ["{'id': 'm1'}"]
    assert clock.now - began > 0.6


@pytest.mark.usefixtures("_at_once")
def test_nobody_is_waited_for_beyond_the_patience():
    grid = Flower({"train.visit": 12})
    assert seen(grid, Sight(grid, range(3, 10**6), others=False), patience_s=0.5) == [Code.UNREACHABLE]


def test_whom_simulated_sites_answer_is_not_made_up_anew_for_every_reply():
    """With 4,000 sites that took a minute of every round."""

    class Many(Site):
        asked: list[Iterable[str]] = []  # noqa: RUF012

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            self.asked.append(message_ids)
            return super().pull_messages(message_ids)

    grid, (one,) = Many({"train.visit": 0}), instruction().values()
    messages = {
        node: Message(one.content, dst_node_id=node, message_type=one.metadata.message_type) for node in range(9)
    }
    replies = list(collect(grid, messages, None))
    assert sorted(node for node, _ in replies) == list(range(9))
    assert [str(reply.content["n"]["id"]) for _, reply in replies] == [f"m{node + 1}" for node, _ in replies]
    assert len({id(numbers) for numbers in grid.asked}) == 1
    assert not list(grid.asked[0]), "a site that has answered is still waited for"
