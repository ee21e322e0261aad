"""Two sites that are let in, played by hand against the real gate, SuperLink and run; one of them plays foul.

The number of the other's message is known here, as the review had it. What the run gets of each site is what that site
itself sent, whatever the other one says; and what nobody can read costs its sender the reply, and nobody else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedgraft.common.base.files import read_json
from helpers.federation import until
from helpers.raw_site import piece
from helpers.stage import Stage, pulled, staged

pytestmark = pytest.mark.deployment


@pytest.fixture(scope="module")
def stage(three, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("stage"), three) as made:
        yield made


def test_an_honest_reply_is_taken(stage: Stage):
    mine, theirs = stage.round()
    assert stage.thief.push(stage.thief.reply(mine, "mine")) == 200
    assert stage.victim.push(stage.victim.reply(theirs, "theirs")) == 200
    assert stage.found() == ("mine", "theirs")


def test_a_reply_in_another_s_name_is_refused_at_the_gate(stage: Stage):
    mine, theirs = stage.round()
    forged = stage.thief.reply(theirs, "forged", src_node_id=stage.victim.node)
    assert stage.thief.push(forged) == 403
    assert stage.victim.push(stage.victim.reply(theirs, "theirs")) == 200
    assert stage.thief.push(stage.thief.reply(mine, "mine")) == 200
    assert stage.found() == ("mine", "theirs")


def test_a_request_in_another_s_name_is_refused_by_flower(stage: Stage):
    """Flower holds the node of a request against the key that signed it."""
    mine, theirs = stage.round()
    forged = stage.thief.reply(theirs, "forged", src_node_id=stage.victim.node)
    assert stage.thief.push(forged, node=stage.victim.node) == 401
    assert stage.victim.push(stage.victim.reply(theirs, "theirs")) == 200
    assert stage.thief.push(stage.thief.reply(mine, "mine")) == 200
    assert stage.found() == ("mine", "theirs")


def test_a_reply_to_what_another_was_asked_is_refused_by_flower(stage: Stage):
    """Flower holds the sender that a reply names against the node that the message was sent to."""
    mine, theirs = stage.round()
    assert stage.thief.push(stage.thief.reply(theirs, "forged")) == 0
    assert stage.victim.push(stage.victim.reply(theirs, "theirs")) == 200
    assert stage.thief.push(stage.thief.reply(mine, "mine")) == 200
    assert stage.found() == ("mine", "theirs")


def test_what_the_pieces_say_of_the_message_they_answer_counts_for_nothing(stage: Stage):
    """The envelope answers the thief's own message, and the reply inside it the other's."""
    mine, theirs = stage.round()
    forged = stage.thief.reply(theirs, "forged", src_node_id=stage.victim.node)
    envelope = {"src_node_id": stage.thief.node, "reply_to_message_id": mine.metadata.message_id}
    assert stage.thief.push(forged, envelope) == 200
    time.sleep(2)  # the run has it before the other answers
    assert stage.victim.push(stage.victim.reply(theirs, "theirs")) == 200
    assert stage.found() == ("forged", "theirs")


def test_a_site_instructs_nobody(stage: Stage):
    """What answers nothing and says that it comes from the server would be an instruction to the other."""
    mine, theirs = stage.round()
    order = stage.thief.reply(mine, "obey", src_node_id=SUPERLINK_NODE_ID, dst_node_id=stage.victim.node)
    order.metadata.__dict__["_reply_to_message_id"] = ""
    assert stage.thief.push(order) == 403
    assert stage.victim.pull() is None
    assert stage.victim.push(stage.victim.reply(theirs, "theirs")) == 200
    assert stage.thief.push(stage.thief.reply(mine, "mine")) == 200
    assert stage.found() == ("mine", "theirs")


def test_a_site_cannot_have_another_s_message_forgotten(stage: Stage):
    stage.current = next(stage.numbers)
    asked = {"nodes": [stage.thief.node, stage.victim.node], "deadline_s": 60.0, "mb": 0}
    (stage.folder / f"ask{stage.current}.json").write_text(json.dumps(asked))
    until((stage.folder / f"numbers{stage.current}.json").exists, 60, "the round's messages")
    numbers = read_json(stage.folder / f"numbers{stage.current}.json")
    mine = pulled(stage.thief)
    for number in numbers:
        assert stage.thief.confirm(number, mine.metadata.run_id) == 200
    theirs = pulled(stage.victim)
    assert stage.victim.push(stage.victim.reply(theirs, "theirs")) == 200
    assert stage.thief.push(stage.thief.reply(mine, "mine")) == 200
    assert stage.found() == ("mine", "theirs")


def test_a_site_that_knows_the_name_of_another_s_piece_does_not_get_it(stage: Stage):
    """Of the message that the other was asked, and of what it has answered."""
    mine, theirs = stage.round()
    reply = stage.victim.reply(theirs, "theirs")
    assert stage.victim.has(theirs.metadata.message_id, theirs)
    assert not stage.thief.has(theirs.metadata.message_id, theirs)
    assert stage.victim.push(reply) == 200
    for name in get_all_nested_objects(reply):
        assert not stage.thief.has(name, theirs)
    assert stage.thief.push(stage.thief.reply(mine, "mine")) == 200
    assert stage.found() == ("mine", "theirs")


def bomb(inner: Message) -> dict[str, bytes]:
    """A reply of some kilobytes with an array that names its one piece a million times."""
    chunk, chunk_body = piece("ArrayChunk", [], bytes(4096))
    about = {"dtype": "uint8", "shape": [1], "stype": "fedgraft.bundle", "arraychunk_ids": [0] * 1_000_000}
    array, array_body = piece("Array", [chunk], json.dumps(about).encode())
    record, record_body = piece("ArrayRecord", [array], json.dumps({"x": array}).encode())
    content, content_body = piece("RecordDict", [record], json.dumps({"tensors": record}).encode())
    own = next(one.deflate() for one in reversed(get_all_nested_objects(inner).values()))
    message, message_body = piece("Message", [content], own.partition(b"\x00")[2])
    pieces = {message: message_body, content: content_body, record: record_body, array: array_body}
    return pieces | {chunk: chunk_body}


def of_another_kind(inner: Message) -> dict[str, bytes]:
    return dict([piece("RecordDict", [], b"{}")])


def of_another_inside(inner: Message) -> dict[str, bytes]:
    chunk, chunk_body = piece("ArrayChunk", [], b"no records")
    own = next(one.deflate() for one in reversed(get_all_nested_objects(inner).values()))
    message, message_body = piece("Message", [chunk], own.partition(b"\x00")[2])
    return {message: message_body, chunk: chunk_body}


def broken(inner: Message) -> dict[str, bytes]:
    return dict([piece("Message", [], b"\xff\xff\xff")])


def without_content(inner: Message) -> dict[str, bytes]:
    own = next(one.deflate() for one in reversed(get_all_nested_objects(inner).values()))
    return dict([piece("Message", [], own.partition(b"\x00")[2])])


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        (bomb, "too_large"),
        (of_another_kind, "garbage"),
        (of_another_inside, "garbage"),
        (broken, "garbage"),
        (without_content, "garbage"),
    ],
)
def test_a_reply_that_cannot_be_put_together_costs_its_sender_the_reply_and_nobody_else(stage: Stage, pieces, code):
    mine, theirs = stage.round()
    inner = stage.thief.reply(mine, "mine")
    assert stage.thief.push(inner, pieces=pieces(inner)) == 200
    assert stage.victim.push(stage.victim.reply(theirs, "theirs")) == 200
    assert stage.found() == (code, "theirs")


def test_a_reply_whose_pieces_never_come_holds_up_nobody(stage: Stage):
    mine, theirs = stage.round(deadline_s=20.0)
    assert stage.thief.push(stage.thief.reply(mine, "never"), objects=False) == 200
    time.sleep(2)  # the run looks for its pieces by now
    assert stage.victim.push(stage.victim.reply(theirs, "theirs")) == 200
    assert stage.found("so_far") == (None, "theirs")
    assert not (stage.folder / f"found{stage.current}.json").exists(), "the round goes on for the other one"
    assert stage.found() == (None, "theirs")
