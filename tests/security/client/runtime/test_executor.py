"""What a site says to a server, and does when it says no; over TLS, with a scripted server in Flower's place."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.runtime import executor
from fedgraft.client.runtime.executor import Link, OverToo, Stopped
from fedgraft.common.base.errors import RunError
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from helpers.members import joined
from helpers.ports import free_port

SECRET = "patient Jane Doe /data/1234"
ACTIVATE, PULL, PUSH = (f"/v1/fleet/{name}" for name in ("activate-node", "pull-messages", "push-messages"))


class Scripted:
    """Answers each path with the next of its statuses, the last one for ever."""

    def __init__(self, home: ServerHome, port: int) -> None:
        self.statuses: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.bodies: list[tuple[str, bytes]] = []
        files = {"ssl_certfile": str(home.gate[0]), "ssl_keyfile": str(home.gate[1])}
        self._server = uvicorn.Server(
            uvicorn.Config(self, port=port, log_config=None, lifespan="off", ws="none", **files)
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.02)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, body, more = scope["path"], b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.asked.append(path)
        self.bodies.append((path, body))
        statuses = self.statuses.get(path, [200])
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        answer = {
            ACTIVATE: ActivateNodeResponse(node_id=5),
            PULL: PullMessagesResponse(),
            PUSH: PushMessagesResponse(session_id="s"),
        }.get(path)
        content = answer.SerializeToString() if answer is not None else b""
        headers = [(b"content-type", b"application/x-protobuf")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()


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
    monkeypatch.setattr(executor, "_TAKEN_S", 0.05)
    monkeypatch.setattr(executor, "_SLOWEST_S", 0.05)
    made = Link(place[0], threading.Event())
    yield made
    made._closed.set()


def test_a_site_signs_in_and_asks(server, link):
    assert link.open() == 5
    assert link.receive() is None
    assert server.asked[:2] == [ACTIVATE, PULL]


def test_a_server_with_another_authoritys_certificate_is_told_nothing(place, tmp_path):
    other = free_port()
    content = {"name": "trial", "server": {"host": "localhost", "port": other}, "sites": ["north", "south"]}
    Authority(tmp_path / "kits").provision(Consortium.model_validate(content))
    impostor = Scripted(Authority(tmp_path / "kits").home, other)
    home = place[0]
    home.write_joined(home.joined().model_copy(update={"port": other}))
    try:
        with pytest.raises(RunError, match="is not this consortium's server"):
            Link(home, threading.Event()).open()
        assert impostor.asked == []
    finally:
        impostor.close()
        home.write_joined(home.joined().model_copy(update={"port": place[2]}))


def test_a_site_that_is_denied_asks_three_times_and_ends(server, link):
    server.statuses[ACTIVATE] = [401]
    with pytest.raises(RunError, match="does not know this site's key"):
        link.open()
    assert server.asked == [ACTIVATE] * 3


def test_a_slip_of_the_clock_is_forgiven(server, link):
    server.statuses[ACTIVATE] = [401, 401, 200]
    assert link.open() == 5


def test_a_server_that_is_away_or_busy_is_waited_for(server, link):
    server.statuses[PULL] = [503, 429, 500, 502, 200]
    link.open()
    assert link.receive() is None


def test_a_run_that_is_over_costs_the_order_alone(server, link):
    server.statuses[PULL] = [403]
    link.open()
    with pytest.raises(OverToo):
        link.receive()


def test_what_makes_no_sense_ends_the_site_with_its_status(server, link):
    server.statuses[PULL] = [418]
    link.open()
    with pytest.raises(RunError, match="418"):
        link.receive()


def test_a_key_that_is_in_use_is_one_site_too_many(server, link):
    server.statuses[ACTIVATE] = [409]
    with pytest.raises(RunError, match="started twice"):
        link.open()
    assert server.asked == [ACTIVATE] * 2


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
        executor._serve(link, executor.Work(asked, None), context)
    pushed = [PushMessagesRequest.FromString(body) for path, body in server.bodies if path == PUSH]
    assert [list(request.clientapp_runtime_list) for request in pushed] == [[0.0], [0.0]]


def test_an_order_that_cannot_be_read_costs_the_order_and_tells_nothing(server, link, monkeypatch, caplog):
    def fails(*_: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(executor, "_read", fails)
    bare = Message(RecordDict(), dst_node_id=1, message_type="train.visit")
    with caplog.at_level(logging.DEBUG):
        executor._serve(link, executor.Work(bare, None), Context(1, 1, {}, RecordDict(), {}))
    assert SECRET not in caplog.text
    assert "ValueError" in caplog.text
