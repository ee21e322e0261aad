"""Pieces of models on a real server, and a site that is let in and wants those of others, or the server's disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fedgraft.common.messages.frames import Condition
from helpers.federation import until
from helpers.raw_site import RawSite, piece
from helpers.stage import Stage, staged

pytestmark = pytest.mark.deployment
MB = 1 << 20


@pytest.fixture(scope="module")
def stage(three, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("stage"), three) as made:
        yield made


def announced(site: RawSite, asked: Message, tree: ObjectTree) -> list[str]:
    """Announce a reply out of any pieces; those that the server wants to have."""
    envelope = message_to_proto(remove_content_from_message(site.reply(asked, "mine")))
    envelope.metadata.message_id = tree.object_id
    request = PushMessagesRequest(node=Node(node_id=site.node), messages_list=[envelope], message_object_trees=[tree])
    answer = site.call("push-messages", request)
    answer.raise_for_status()
    return list(PushMessagesResponse.FromString(answer.content).objects_to_push)


def with_model(site: RawSite, asked: Message, mb: int, **told: Any) -> Message:
    reply = site.reply(asked, "mine", **told)
    content = ArrayRecord([np.frombuffer(np.random.default_rng(mb).bytes(mb * MB), np.uint8)])
    made = Message(RecordDict({"words": ConfigRecord({"json": "mine"}), "model": content}), reply_to=asked)
    made.metadata.__dict__.update(reply.metadata.__dict__)
    return made


def pieces_on_disk(stage: Stage) -> list[str]:
    return sorted(path.name for path in stage.home.bodies.glob("*"))


def test_a_site_that_names_a_piece_of_its_reply_after_its_message_gets_nothing_that_it_hangs_on_that(stage: Stage):
    """What hangs on a message that was sent to a site is the site's; the message's own name is free once it has it."""
    mine, theirs = stage.round()
    assert stage.thief.confirm(mine.metadata.message_id, mine.metadata.run_id) == 200
    reply = stage.victim.reply(theirs, "theirs")
    wanted = next(name for name, one in get_all_nested_objects(reply).items() if not one.children)

    def steal() -> None:
        inner = ObjectTree(object_id=mine.metadata.message_id, children=[ObjectTree(object_id=wanted)])
        outer = ObjectTree(object_id=piece("Message", [inner.object_id], b"")[0], children=[inner])
        for tree in (inner, outer):
            assert announced(stage.thief, mine, tree) == []
            assert not stage.thief.has(wanted, theirs)

    assert stage.victim.push(reply, meanwhile=steal) == 200
    assert stage.thief.push(stage.thief.reply(mine, "mine")) == 200
    assert stage.found() == ("mine", "theirs")


def test_in_a_request_of_many_a_site_has_its_own_pieces_alone_and_sends_none_into_another_s_reply(stage: Stage):
    mine, theirs = stage.round(mb=8)
    own, other = mine.metadata.message_id, theirs.metadata.message_id
    said = stage.thief.conditions([own, other, "0" * 64], mine)
    assert said == {own: Condition.HERE, other: Condition.NONE, "0" * 64: Condition.NONE}
    reply = stage.victim.reply(theirs, "theirs")
    pieces = [(name, one.deflate()) for name, one in get_all_nested_objects(reply).items()]
    envelope = message_to_proto(remove_content_from_message(reply))
    envelope.metadata.message_id = reply.object_id
    request = PushMessagesRequest(
        node=Node(node_id=stage.victim.node), messages_list=[envelope], message_object_trees=[get_object_tree(reply)]
    )
    taken = PushMessagesResponse.FromString(stage.victim.call("push-messages", request).content)
    run = theirs.metadata.run_id
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        stage.thief.push_many(pieces, run, taken.session_id, node=stage.victim.node)
    other_run, _ = run + 1, stage.thief.push_many(pieces[:1], run, "no such session")
    with pytest.raises(httpx.HTTPStatusError):
        stage.thief.push_many(pieces, other_run, taken.session_id)
    name, content = pieces[0]
    assert not stage.victim.push_many([(name, content[:-1] + b"?")], run, taken.session_id)
    assert not stage.victim.push_many([*pieces, piece("RecordDict", [], b"{}")], run, taken.session_id)
    assert stage.thief.push(stage.thief.reply(mine, "mine")) == 200
    assert stage.found() == ("mine", "theirs")


def test_a_site_cannot_break_off_another_s_reply_by_announcing_it(stage: Stage):
    """Nor the message that it answers, whose names are known here."""
    mine, theirs = stage.round()
    reply = stage.victim.reply(theirs, "theirs")
    whole, said = get_object_tree(reply), list[str]()
    assert announced(stage.thief, mine, ObjectTree(object_id=theirs.metadata.message_id)) == []
    taken = stage.victim.push(reply, meanwhile=lambda: said.extend(announced(stage.thief, mine, whole)))
    assert (taken, said) == (200, [])
    assert stage.thief.push(stage.thief.reply(mine, "mine")) == 200
    assert stage.found() == ("mine", "theirs")


def test_a_piece_that_is_sent_again_since_the_answer_was_lost_is_there_and_no_copy_of_it(stage: Stage):
    mine, theirs = stage.round(mb=8)
    assert stage.thief.push(with_model(stage.thief, mine, 6), times=2) == 200
    assert stage.victim.push(stage.victim.reply(theirs, "theirs"), times=3) == 200
    assert stage.found() == ("mine", "theirs")
    until(lambda: pieces_on_disk(stage) == [], 10, "the pieces to go")


def test_what_nobody_takes_and_nobody_answers_does_not_stay_on_the_disk_until_the_run_ends(stage: Stage):
    """A site that never says that it has its message, and sends more than a reply may be, half of it, or nothing."""
    mine, theirs = stage.round(mb=8)
    assert len(pieces_on_disk(stage)) == 2
    with contextlib.suppress(AssertionError):  # it may be told so while it sends
        stage.thief.push(with_model(stage.thief, mine, 64))
    assert stage.victim.push(stage.victim.reply(theirs, "theirs")) == 200
    assert stage.found() == ("too_large", "theirs")
    until(lambda: pieces_on_disk(stage) == [], 10, "the pieces to go")
    mine, theirs = stage.round(deadline_s=8, mb=8)
    assert stage.thief.push(with_model(stage.thief, mine, 12), most=-1) == 200
    assert len(pieces_on_disk(stage)) > 2
    assert stage.found() == (None, None)
    until(lambda: pieces_on_disk(stage) == [], 10, "the pieces to go")
    assert stage.thief.push(stage.thief.reply(mine, "late")) == 0
    mine, theirs = stage.round(deadline_s=2, mb=8)
    assert stage.found() == (None, None)
    until(lambda: pieces_on_disk(stage) == [], 10, "the pieces to go")
