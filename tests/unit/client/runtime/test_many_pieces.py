"""The pieces of an answer in few requests, over TLS: how many go at once, and how a line that breaks is borne with."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.runtime import link as connection
from fedgraft.client.runtime.link import Link
from fedgraft.client.runtime.many import AT_ONCE_BYTES, PUSH_PIECES, together
from fedgraft.common.messages.frames import ENVELOPE, HEAD_BYTES, MOST_AT_ONCE, FrameReader
from fedgraft.common.protocol import wire
from fedgraft.server.bodies.relay import LARGEST_AT_ONCE
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from helpers.members import joined
from helpers.ports import free_port
from helpers.scripted import PUSH, Scripted

MB = 1 << 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[SiteHome, ServerHome, int]:
    root, port = tmp_path_factory.mktemp("consortium"), free_port()
    content = {"name": "trial", "server": {"host": "localhost", "port": port}, "sites": ["north", "south"]}
    Authority(root / "kits").provision(Consortium.model_validate(content))
    return joined(root / "kits"), Authority(root / "kits").home, port


@pytest.fixture
def server(place: tuple[SiteHome, ServerHome, int]) -> Iterator[Scripted]:
    made = Scripted(place[1], place[2])

    def wanted(body: bytes) -> bytes:
        (tree,) = PushMessagesRequest.FromString(body).message_object_trees
        names = {one.object_id for one in iterate_object_tree(tree)}
        return PushMessagesResponse(objects_to_push=names, session_id="s").SerializeToString()

    made.answers[PUSH] = wanted
    made.answers[PUSH_PIECES] = lambda _: PushObjectResponse(stored=True).SerializeToString()
    yield made
    made.close()


@pytest.fixture
def link(place: tuple[SiteHome, ServerHome, int], server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    monkeypatch.setattr(connection, "_SLOWEST_S", 0.02)
    made = Link(place[0], threading.Event())
    made.open()
    yield made
    made._closed.set()


@pytest.fixture
def reply() -> Message:
    """An answer with a model of 11 MiB: eight pieces."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 3, 1, 1
    asked = Message(RecordDict(), dst_node_id=5, message_type=wire.VISIT)
    asked.metadata.__dict__["_message_id"] = "0" * 64
    model = ArrayRecord({"x": Array(np.arange(11 * MB // 4, dtype=np.int32))})
    return Message(RecordDict({"model": model, "words": ConfigRecord({"json": "done"})}), reply_to=asked)


def requests(server: Scripted) -> list[list[tuple[str, bytes]]]:
    """What stood in each request with pieces, the envelope first."""
    found = []
    for path, body in server.bodies:
        if path == PUSH_PIECES:
            reader = FrameReader(MOST_AT_ONCE + 1)
            found.append([(frame.name, content) for frame, content in reader.take(body)])
            reader.end()
    return found


def test_an_answer_s_pieces_go_in_one_request_with_its_run_and_session(link, server, reply):
    pieces = {name: one.deflate() for name, one in get_all_nested_objects(reply).items()}
    link.send(reply)
    (((name, envelope), *sent),) = requests(server)
    said = PushObjectRequest.FromString(envelope)
    assert (name, said.run_id, said.session_id, said.node.node_id) == (ENVELOPE, 3, "s", 5)
    assert dict(sent) == pieces
    assert len(sent) == len(pieces) == 8


def test_a_line_that_breaks_is_tried_with_half_as_many_pieces_down_to_one(link, server, reply):
    server.statuses[PUSH_PIECES] = [503, 408, 503, 429, 503, 503, 503, 200]
    link.send(reply)
    counts = [len(one) - 1 for one in requests(server)]
    assert counts == [8, 4, 2, 1, 1, 1, 1, 1, 7]
    assert len({name for one in requests(server)[-2:] for name, _ in one}) == 9


def test_a_piece_that_the_server_does_not_want_ends_the_sending(link, server, reply):
    server.answers[PUSH_PIECES] = lambda _: PushObjectResponse(stored=False).SerializeToString()
    with pytest.raises(ObjectPushError):
        link.send(reply)
    assert len(requests(server)) == 1


def test_so_much_goes_together_and_the_gate_takes_all_of_it():
    pieces = [(f"{number:064x}", (b"head", bytes(5 * MB - 4))) for number in range(12)]
    assert together(pieces) == 9
    assert together([("0" * 64, (bytes(AT_ONCE_BYTES + 1),))] * 2) == 1
    assert together([("0" * 64, (b"",))] * 100) == MOST_AT_ONCE
    assert AT_ONCE_BYTES + MOST_AT_ONCE * HEAD_BYTES + (1 << 12) < LARGEST_AT_ONCE
