"""A server that lies about pieces: what a site takes in has bounds, and it is what its name says."""

from __future__ import annotations

import gzip
import json
import logging
import resource
import threading
from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.runtime import executor, incoming
from fedgraft.client.runtime import link as connection
from fedgraft.client.runtime.link import Link, Stopped, Work
from fedgraft.common.base.errors import RunError
from fedgraft.common.messages.frames import LARGEST_PIECE, MOST_AT_ONCE, Condition, framed, head, split
from fedgraft.common.messages.pieces import MOST_PIECES, TooLargeMessage
from fedgraft.common.protocol import wire
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from helpers.members import joined
from helpers.ports import free_port
from helpers.raw_site import piece
from helpers.scripted import ACTIVATE, PULL, PUSH, Scripted

PIECE = "/v1/fleet/pull-pieces"
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
    yield made
    made.close()


@pytest.fixture
def link(place: tuple[SiteHome, ServerHome, int], server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    monkeypatch.setattr(connection, "_SLOWEST_S", 0.02)
    monkeypatch.setattr(connection, "_REFUSED_TIMES", 3)
    made = Link(place[0], threading.Event())
    made.open()
    yield made
    made._closed.set()


@pytest.fixture
def sent(server: Scripted) -> dict[str, bytes]:
    """An honest message, as the server has it: its pieces by name, the message first, to be changed by a test."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 3, 1, 1
    message = Message(RecordDict({"words": ConfigRecord({"json": "work"})}), dst_node_id=5, message_type=wire.VISIT)
    pieces = {name: one.deflate() for name, one in reversed(get_all_nested_objects(message).items())}
    served(server, pieces, get_object_tree(message), message)
    return pieces


def served(server: Scripted, pieces: dict[str, bytes], tree: ObjectTree, message: Message) -> None:
    bare = message_to_proto(remove_content_from_message(message))
    answer = PullMessagesResponse(messages_list=[bare], message_object_trees=[tree]).SerializeToString()
    server.answers[PULL] = lambda _: answer

    def give(body: bytes) -> bytes:
        return b"".join(frame(name, pieces.get(name)) for name in split(PullObjectRequest.FromString(body).object_id))

    server.answers[PIECE] = give


def frame(name: str, held: bytes | None) -> bytes:
    if held:
        return framed([(name, held)])
    return head(name, Condition.NONE if held is None else Condition.LATER)


def received(link: Link) -> Work:
    work = link.receive()
    assert work is not None
    return work


def made_of(link: Link, pieces: dict[str, bytes], about: dict[str, object], chunk: bytes) -> Work:
    """Work whose message holds one array that says this of itself, and whose one piece holds `chunk`."""
    part, part_body = piece("ArrayChunk", [], chunk)
    array, array_body = piece(
        "Array", [part], json.dumps({"dtype": "uint8", "shape": [1], "stype": "x"} | about).encode()
    )
    record, record_body = piece("ArrayRecord", [array], json.dumps({"x": array}).encode())
    content, content_body = piece("RecordDict", [record], json.dumps({"tensors": record}).encode())
    own = next(iter(pieces.values())).partition(b"\x00")[2]
    message, message_body = piece("Message", [content], own)
    new = {message: message_body, content: content_body, record: record_body, array: array_body, part: part_body}
    pieces |= new
    tree = ObjectTree(object_id=part)
    for name in (array, record, content, message):
        tree = ObjectTree(object_id=name, children=[tree])
    return Work(received(link).bare, tree)


def test_an_honest_message_is_read(link, server, sent):
    message = link.read(received(link))
    assert message.content["words"]["json"] == "work"


def test_a_piece_that_is_another_than_its_name_says_is_none(link, server, sent):
    work = received(link)
    for name in list(sent):
        whole = sent[name]
        sent[name] = whole[:-1] + bytes([whole[-1] ^ 1])
        with pytest.raises(ObjectPullError, match="another"):
            link.read(work)
        sent[name] = whole
    assert link.read(work).content["words"]["json"] == "work"


def test_an_array_that_names_its_piece_a_million_times_is_not_made(link, server, sent, monkeypatch):
    work = made_of(link, sent, {"arraychunk_ids": [0] * 1_000_000}, bytes(MB))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLargeMessage):
        link.read(work)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def test_a_message_that_outgrows_the_memory_is_left_where_it_is(link, server, sent, monkeypatch):
    work = made_of(link, sent, {"arraychunk_ids": [0]}, bytes(5 * MB))
    assert link.read(work).content["tensors"]
    monkeypatch.setattr(incoming, "memory_bytes", lambda: (12.0 * MB, 1.0 * MB))
    with pytest.raises(TooLargeMessage):
        link.read(work)


def test_a_tree_of_more_pieces_than_there_may_be_is_not_asked_for(link, server, sent):
    work = received(link)
    for child in work.tree.children[:]:
        work.tree.children.extend([child] * MOST_PIECES)
    asked = len(server.asked)
    with pytest.raises(TooLargeMessage):
        link.read(work)
    assert len(server.asked) == asked


def test_an_answer_that_is_far_too_large_ends_the_site_with_a_word_and_not_its_memory(link, server, sent):
    server.answers[PULL] = lambda _: bytes(48 * MB)
    with pytest.raises(RunError, match="does not speak as Flower does"):
        link.receive()


@pytest.mark.parametrize("size", [LARGEST_PIECE + 1, 1 << 40])
def test_a_piece_that_is_far_too_large_is_not_taken_in(link, server, sent, size):
    work = received(link)
    server.answers[PIECE] = lambda _: head(work.tree.object_id, Condition.HERE, size) + bytes(48 * MB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunError, match="does not speak as Flower does"):
        link.read(work)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def test_an_answer_of_more_pieces_than_were_asked_for_is_none(link, server, sent):
    work, (own, *_) = received(link), sent
    server.answers[PIECE] = lambda _: framed([(own, sent[own]), *[(f"{n:064x}", b"x") for n in range(MOST_AT_ONCE)]])
    with pytest.raises(ObjectPullError, match="another"):
        link.read(work)
    server.answers[PIECE] = lambda _: framed([(own, sent[own])] * 2)
    with pytest.raises(ObjectPullError, match="nobody has asked"):
        link.read(work)


def test_what_came_before_an_answer_broke_off_is_not_asked_for_again(link, server, sent):
    work, give, asked = received(link), server.answers[PIECE], list[int]()

    def half(body: bytes) -> bytes:
        asked.append(len(split(PullObjectRequest.FromString(body).object_id)))
        whole = give(body)
        return whole if len(asked) > 1 else whole[:-3]

    server.answers[PIECE] = half
    assert link.read(work).content["words"]["json"] == "work"
    assert asked == [len(sent), 1]


def test_an_answer_that_is_packed_is_not_unpacked(link, server, sent):
    """A megabyte would become a gigabyte."""
    packed = gzip.compress(bytes(1024 * MB), 1)
    assert len(packed) < 8 * MB
    work = received(link)
    server.answers[PIECE], server.headers = (lambda _: packed), [(b"content-encoding", b"gzip")]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunError, match="does not speak as Flower does"):
        link.read(work)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


def test_a_site_goes_nowhere_that_the_server_names(link, server, place):
    """Another machine of the hospital, say, which would have the site's update without TLS."""
    other, port = Scripted(place[1], at := free_port()), at
    server.statuses[PULL], server.headers = [307], [(b"location", f"https://localhost:{port}{PULL}".encode())]
    try:
        with pytest.raises(RunError, match="307"):
            link.receive()
        assert other.asked == []
    finally:
        other.close()


def test_a_piece_that_does_not_come_is_not_waited_for_without_end(link, server, sent, monkeypatch):
    monkeypatch.setattr(incoming, "_PATIENCE_S", 0.5)
    work = received(link)
    sent[list(sent)[-1]] = b""
    with pytest.raises(ObjectPullError, match="does not come"):
        link.read(work)
    monkeypatch.setattr(incoming, "_PATIENCE_S", 600.0)
    link._stop.set()
    with pytest.raises(Stopped):
        link.read(work)


@pytest.mark.parametrize("answer", [b"\xff\xff\xff", b"<html>please log in</html>"])
def test_a_page_in_place_of_an_answer_is_borne_with_for_a_while(link, server, answer):
    server.answers[PULL] = lambda _: answer
    with pytest.raises(RunError, match="does not speak as Flower does"):
        link.receive()


def test_a_message_that_makes_no_sense_is_left_undone(link, server, sent):
    bare = received(link).bare
    proto = message_to_proto(bare)
    answer = PullMessagesResponse(messages_list=[proto]).SerializeToString()
    server.answers[PULL] = lambda _: answer
    assert link.receive() is None


def test_the_server_is_told_a_constant_word_and_the_people_at_the_site_why(link, server, sent, caplog, monkeypatch):
    monkeypatch.setattr(incoming, "memory_bytes", lambda: (300.0, 1.0))
    with caplog.at_level(logging.INFO):
        executor._serve(link, received(link), Context(5, 5, {}, RecordDict(), {}))
    assert "more than a third of this machine's memory" in caplog.text
    pushed = [PushMessagesRequest.FromString(body) for path, body in server.bodies if path == PUSH]
    assert [one.messages_list[0].error.reason for one in pushed] == ["lost"]
    assert server.asked[0] == ACTIVATE
