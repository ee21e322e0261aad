"""A message out of its pieces: as Flower takes it apart, and within bounds."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fedgraft.common.messages.pieces import (
    MOST_PIECES,
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


def test_what_was_taken_apart_is_put_together_again(record: RecordDict) -> None:
    there, tree = pieces_of(record), get_object_tree(record)
    assert sorted(names_in(tree)) == sorted(there)
    assert all(is_of(name, content) for name, content in there.items())
    found = gathered(tree, there.__getitem__, 1 << 20)
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
    assert gathered(tree, there.__getitem__, size) == there
    with pytest.raises(TooLargeMessage):
        gathered(tree, there.__getitem__, size - 1)


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
