"""A message out of its pieces: as Flower takes it apart, and within bounds."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError

from fedgraft.common.messages.frames import MOST_AT_ONCE
from fedgraft.common.messages.pieces import (
    MOST_PIECES,
    Pull,
    Take,
    TooLargeMessage,
    gathered,
    is_of,
    names_in,
    put_together,
)

NAMES = ("first", "second")


@pytest.fixture
def record() -> RecordDict:
    """A model of two entries of 4,000 bytes, and a few words."""
    arrays = ArrayRecord({name: Array(np.arange(1000, dtype=np.float32) + at) for at, name in enumerate(NAMES)})
    return RecordDict({"model": arrays, "words": ConfigRecord({"round": 3})})


def pieces_of(record: RecordDict) -> dict[str, bytes]:
    return {name: one.deflate() for name, one in get_all_nested_objects(record).items()}


def giving(there: dict[str, bytes]) -> Pull:
    """Has all pieces that it is asked for."""

    def pull(names: Collection[str], take: Take) -> None:
        for name in list(names):
            take(name, there[name])

    return pull


def never() -> None:
    raise AssertionError


def test_what_was_taken_apart_is_put_together_again(record: RecordDict) -> None:
    there, tree = pieces_of(record), get_object_tree(record)
    assert sorted(names_in(tree)) == sorted(there)
    assert all(is_of(name, content) for name, content in there.items())
    found = gathered(tree, giving(there), 1 << 20, never)
    assert found == there
    again = put_together(record.object_id, found, 1 << 20)
    assert isinstance(again, RecordDict)
    assert again.config_records["words"]["round"] == 3
    assert np.array_equal(again.array_records["model"]["second"].numpy(), np.arange(1000, dtype=np.float32) + 1)


def test_a_piece_of_another_name_is_told(record: RecordDict) -> None:
    first, second, *_ = pieces_of(record).items()
    assert not is_of(first[0], second[1])


def test_no_more_is_gathered_than_there_is_room_for(record: RecordDict) -> None:
    there, tree = pieces_of(record), get_object_tree(record)
    size = sum(map(len, there.values()))
    assert gathered(tree, giving(there), size, never) == there
    with pytest.raises(TooLargeMessage):
        gathered(tree, giving(there), size - 1, never)


def test_pieces_that_come_later_are_waited_for_and_asked_for_again(record: RecordDict) -> None:
    there, tree = pieces_of(record), get_object_tree(record)
    late, asked, waits = list(there)[2:], list[int](), list[int]()

    def pull(names: Collection[str], take: Take) -> None:
        asked.append(len(names))
        for name in list(names):
            take(name, None if name in late else there[name])

    def wait() -> None:
        waits.append(len(late))
        late.pop()

    assert gathered(tree, pull, 1 << 20, wait) == there
    assert asked[0] == len(there)
    assert asked[-1] == 1
    assert len(waits) == len(there) - 2


def test_a_message_of_many_pieces_is_asked_for_in_parts_and_what_comes_late_does_not_stop_the_rest() -> None:
    there = {f"{number:064x}": bytes([number % 256]) for number in range(3 * MOST_AT_ONCE)}
    first, *others = there
    tree = ObjectTree(object_id=first, children=[ObjectTree(object_id=name) for name in others])
    late, asked = set(list(there)[:MOST_AT_ONCE]), list[int]()

    def pull(names: Collection[str], take: Take) -> None:
        asked.append(len(names))
        for name in list(names):
            take(name, None if name in late and len(asked) < 4 else there[name])

    assert gathered(tree, pull, 1 << 20, lambda: None) == there
    assert max(asked) == MOST_AT_ONCE
    assert len(asked) == 4


@pytest.mark.parametrize("again", [False, True])
def test_a_piece_that_nobody_has_asked_for_is_not_taken(record: RecordDict, again: bool) -> None:
    there, tree = pieces_of(record), get_object_tree(record)

    def pull(names: Collection[str], take: Take) -> None:
        first = next(iter(names))
        take(first, there[first])
        take(first if again else "0" * 64, b"more")

    with pytest.raises(ObjectPullError, match="nobody has asked"):
        gathered(tree, pull, 1 << 20, never)


def test_no_more_is_put_together_than_there_is_room_for(record: RecordDict) -> None:
    there = pieces_of(record)
    assert put_together(record.object_id, dict(there), 9000)
    with pytest.raises(TooLargeMessage):
        put_together(record.object_id, dict(there), 4500)


@pytest.mark.parametrize("deep", [False, True])
def test_a_tree_of_more_pieces_than_any_message_has_is_not_walked(deep: bool) -> None:
    leaf = ObjectTree(object_id="a")
    if deep:
        tree = ObjectTree(object_id="b", children=[ObjectTree(object_id="c", children=[leaf] * 200)] * 100)
    else:
        tree = ObjectTree(object_id="b", children=[leaf] * MOST_PIECES)
    with pytest.raises(TooLargeMessage):
        names_in(tree)
    assert names_in(ObjectTree(object_id="b", children=[leaf] * 100)) == ["b", "a"]


def chunk_of(there: dict[str, bytes]) -> str:
    return next(name for name, content in there.items() if content.startswith(b"ArrayChunk"))


def test_an_array_names_a_piece_of_its_values_as_often_as_it_likes() -> None:
    zeros = RecordDict({"model": ArrayRecord({"weight": Array("uint8", (3 * 5 << 20,), "raw", bytes(3 * 5 << 20))})})
    there = pieces_of(zeros)
    assert sum(content.startswith(b"ArrayChunk") for content in there.values()) == 1
    again = put_together(zeros.object_id, there, 1 << 24)
    assert isinstance(again, RecordDict)
    assert again.array_records["model"]["weight"] == zeros.array_records["model"]["weight"]


@pytest.mark.parametrize(
    "forged",
    [b"ArrayChunk %s 4\0" + b"abcd", b"ConfigRecord %s 2\0{}", b"Array %s 2\0{}"],
    ids=["parent", "words", "array"],
)
def test_what_is_no_piece_of_values_makes_no_array(record: RecordDict, forged: bytes) -> None:
    there = pieces_of(record)
    there[chunk_of(there)] = forged % (b"0" * 64 if b"Chunk" in forged else b"")
    with pytest.raises((ValueError, LookupError)):
        put_together(record.object_id, there, 1 << 20)


def test_an_array_that_names_pieces_it_does_not_use_is_none(record: RecordDict) -> None:
    there = pieces_of(record)
    name = next(name for name, content in there.items() if content.startswith(b"Array "))
    there[name] = there[name].replace(b'"arraychunk_ids": [0]', b'"arraychunk_ids": []')
    with pytest.raises(ValueError, match="other pieces"):
        put_together(record.object_id, there, 1 << 20)
