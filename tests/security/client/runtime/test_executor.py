"""What a site says to a server, and does when it says no; over TLS, with a scripted server in Flower's place."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.enrolment.edit_yaml import change_values
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.runtime import executor
from fedgraft.client.runtime import link as connection
from fedgraft.client.runtime.link import Link, OverToo, Stopped, Work
from fedgraft.common.base.errors import RunError
from fedgraft.common.protocol import wire
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from helpers.members import joined
from helpers.ports import free_port
from helpers.scripted import ACTIVATE, PULL, PUSH, Scripted

SECRET = "patient Jane Doe /data/1234"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[SiteHome, ServerHome, int]:
    root, port = tmp_path_factory.mktemp("consortium"), free_port()
    content = {"name": "trial", "server": {"host": "localhost", "port": port}, "sites": ["north", "south"]}
    Authority(root / "kits").provision(Consortium.model_validate(content))
    return joined(root / "kits"), Authority(root / "kits").home, port


@pytest.fixture
def server(place: tuple[SiteHome, ServerHome, int]) -> Iterator[Scripted]:
    made = Scripted(place[1], place[2])
    yield made
    made.close()


@pytest.fixture
def link(place: tuple[SiteHome, ServerHome, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """A connection whose pauses are short."""
    monkeypatch.setattr(connection, "_TAKEN_S", 0.05)
    monkeypatch.setattr(connection, "_TAKEN_POLL_S", 0.02)
    monkeypatch.setattr(connection, "_SLOWEST_S", 0.02)
    made = Link(place[0], threading.Event())
    yield made
    made._closed.set()


def test_a_site_signs_in_and_asks(server, link):
    assert link.open() == 5
    assert link.receive() is None
    assert server.asked[:2] == [ACTIVATE, PULL]


def look_at(home: SiteHome, port: int) -> None:
    change_values(home.config, {"server": {"address": f"localhost:{port}", "ca": str(home.authority)}})


def test_a_server_with_another_authoritys_certificate_is_told_nothing(place, tmp_path):
    other = free_port()
    content = {"name": "trial", "server": {"host": "localhost", "port": other}, "sites": ["north", "south"]}
    Authority(tmp_path / "kits").provision(Consortium.model_validate(content))
    impostor = Scripted(Authority(tmp_path / "kits").home, other)
    home = place[0]
    look_at(home, other)
    try:
        with pytest.raises(RunError, match="is not this consortium's server"):
            Link(home, threading.Event()).open()
        assert impostor.asked == []
    finally:
        impostor.close()
        look_at(home, place[2])


def test_a_site_that_is_denied_asks_three_times_and_ends(server, link):
    server.statuses[ACTIVATE] = [401]
    with pytest.raises(RunError, match="does not know this site's key"):
        link.open()
    assert server.asked == [ACTIVATE] * 3


def test_a_slip_of_the_clock_is_forgiven(server, link):
    server.statuses[ACTIVATE] = [401, 401, 200]
    assert link.open() == 5


def test_a_server_that_is_away_or_busy_is_waited_for(server, link):
    """A gate that stalled finds that the bodies of requests come too late; a proxy has a page of its own meanwhile."""
    server.statuses[PULL] = [503, 429, 408, 500, 404, 502, 200]
    link.open()
    assert link.receive() is None


def test_a_run_that_is_over_costs_the_order_alone(server, link):
    server.statuses[PULL] = [403]
    link.open()
    with pytest.raises(OverToo):
        link.receive()


def test_what_never_makes_sense_ends_the_site_with_its_status(server, link, monkeypatch):
    monkeypatch.setattr(connection, "_REFUSED_TIMES", 3)
    server.statuses[PULL] = [418]
    link.open()
    with pytest.raises(RunError, match="418"):
        link.receive()


def test_a_key_that_is_in_use_is_one_site_too_many(server, link):
    server.statuses[ACTIVATE] = [409]
    with pytest.raises(RunError, match="started twice"):
        link.open()
    assert len(server.asked) > 1
    assert set(server.asked) == {ACTIVATE}


def test_a_site_that_was_killed_is_in_again_as_soon_as_its_last_heartbeat_is_forgotten(server, link, monkeypatch):
    monkeypatch.setattr(connection, "_TAKEN_S", 30.0)
    server.statuses[ACTIVATE] = [409, 409, 409, 200]
    pauses: list[float] = []
    monkeypatch.setattr(link, "_pause", pauses.append)
    assert link.open() == 5
    assert server.asked == [ACTIVATE] * 4
    assert pauses == [connection._TAKEN_POLL_S] * 3, "it asks again and again, and does not sit out a fixed time"


def test_a_site_that_is_told_to_stop_waits_for_nobody(server, place):
    stop = threading.Event()
    stop.set()
    server.statuses[ACTIVATE] = [503]
    with pytest.raises(Stopped):
        Link(place[0], stop).open()


def test_no_word_of_what_went_wrong_reaches_the_server_or_the_shared_log(monkeypatch, caplog):
    def fails(*_: object) -> Message:
        raise ValueError(SECRET)

    monkeypatch.setattr(executor, "app", fails)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(RecordDict(), dst_node_id=1, message_type="train.visit")
    message.metadata.__dict__["_message_id"] = "m"
    with caplog.at_level(logging.DEBUG):
        reply = executor._answer(message, Context(1, 1, {}, RecordDict(), {}))
    assert reply.error.reason == "failed"
    assert SECRET not in str(vars(reply.error)) + caplog.text
    assert "ValueError" in caplog.text


def test_how_long_an_answer_took_is_not_said(server, link, monkeypatch):
    """The seconds of computing grow with the patients; Flower has a field for them."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    context = Context(1, 1, {}, RecordDict(), {})
    for seconds in (0.0, 0.4):
        asked = Message(RecordDict(), dst_node_id=1, message_type="train.visit")
        asked.metadata.__dict__["_message_id"] = "m"

        def slow(message: Message, _: Context, seconds: float = seconds) -> Message:
            threading.Event().wait(seconds)
            return Message(RecordDict(), reply_to=message)

        monkeypatch.setattr(executor, "app", slow)
        monkeypatch.setattr(Link, "read", lambda self, work, asked=asked: asked)
        executor._serve(link, Work(asked, None), context)
    pushed = [PushMessagesRequest.FromString(body) for path, body in server.bodies if path == PUSH]
    assert [list(request.clientapp_runtime_list) for request in pushed] == [[0.0], [0.0]]


def test_an_order_that_cannot_be_read_costs_the_order_and_tells_nothing(server, link, monkeypatch, caplog):
    def fails(*_: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(executor, "_read", fails)
    bare = Message(RecordDict(), dst_node_id=1, message_type="train.visit")
    with caplog.at_level(logging.DEBUG):
        executor._serve(link, Work(bare, None), Context(1, 1, {}, RecordDict(), {}))
    assert SECRET not in caplog.text
    assert "ValueError" in caplog.text


class Queue:
    """A connection over which these messages come."""

    def __init__(self, *work: tuple[str, int]) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self._work = [_work(kind, run) for kind, run in work]

    def receive(self) -> Work | None:
        return self._work.pop(0) if self._work else None


def _work(kind: str, run: int) -> Work:
    bare = Message(RecordDict(), dst_node_id=1, message_type=kind)
    bare.metadata.__dict__["_run_id"] = run
    return Work(bare, None)


def test_a_site_that_was_away_for_some_rounds_goes_on_with_the_newest():
    sent = [(wire.VISIT, 1), (wire.VISIT, 2), (wire.PING, 1), (wire.VISIT, 1), (wire.PING, 1)]
    waiting = executor.Waiting(Queue(*sent))
    done = [(work.kind, work.run) for work in iter(waiting.next, None)]
    assert done == [(wire.VISIT, 2), (wire.PING, 1), (wire.VISIT, 1), (wire.PING, 1)]


def test_a_site_that_the_server_has_held_while_it_waited_asks_again_at_once(place, server, monkeypatch):
    monkeypatch.setattr(executor, "_BUSY_S", 600.0)
    monkeypatch.setattr(executor, "_HELD_S", 0.05)
    stop, three = threading.Event(), threading.Event()

    def held(_: bytes) -> bytes:
        if server.asked.count(PULL) > 2:
            three.set()
            stop.set()
        threading.Event().wait(0.1)
        return b""

    server.answers[PULL] = held
    site = threading.Thread(target=executor.run_site, args=(place[0], stop), daemon=True)
    site.start()
    assert three.wait(120)
    site.join(120)
    assert not site.is_alive()
