"""A message cut into pieces: the very pieces that Flower makes of it, under the same names."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.common.messages.cut import cut, size_of_parts
from fedgraft.common.messages.pieces import is_of, put_together

MB = 1 << 20


def message(record: RecordDict, node: int = 1) -> Message:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 3, 1, 1
    return Message(record, dst_node_id=node, message_type="train.visit", ttl=60.0)


def record(size: int) -> RecordDict:
    values = np.random.default_rng(0).integers(0, 255, size, np.uint8)
    arrays = ArrayRecord({"w": Array("uint8", (size,), "raw", values.tobytes()), "b": Array(np.arange(3))})
    return RecordDict({"model": arrays, "words": ConfigRecord({"round": 3})})


@pytest.mark.parametrize("size", [0, 7, 5 * MB, 11 * MB])
def test_flower_would_cut_it_so(size: int) -> None:
    one = message(record(size))
    found = cut([one])
    flowers = {name: each.deflate() for name, each in get_all_nested_objects(message_like(one, size)).items()}
    assert {name: b"".join(found.parts(name)) for name in found.objects} == flowers
    assert found.trees == [get_object_tree(message_like(one, size))]
    assert one.metadata.message_id == found.trees[0].object_id
    assert all(is_of(name, b"".join(found.parts(name))) for name in found.objects)
    assert all(size_of_parts(found.parts(name)) == len(content) for name, content in flowers.items())


def message_like(one: Message, size: int) -> Message:
    """The same message, which nobody has cut."""
    again = message(record(size))
    again.metadata.__dict__.update(one.metadata.__dict__)
    return again


def test_values_that_many_messages_hold_are_named_once_and_not_copied() -> None:
    model = record(11 * MB)
    found = cut([message(model, node) for node in (1, 2, 3)])
    large = [found.parts(name) for name in found.objects if size_of_parts(found.parts(name)) > MB // 2]
    values = model.array_records["model"]["w"].data
    assert len(large) == 3
    assert len(found.trees) == len({tree.object_id for tree in found.trees}) == 3
    assert all(isinstance(part[1], memoryview) and part[1].obj is values for part in large)


def test_what_was_cut_is_put_together_again() -> None:
    one = message(record(6 * MB))
    found = cut([one])
    contents = {name: b"".join(found.parts(name)) for name in found.objects}
    again = put_together(one.metadata.message_id, contents, 16 * MB)
    assert isinstance(again, Message)
    assert again.content["model"]["w"] == one.content["model"]["w"]


def test_an_empty_message_has_two_pieces_and_no_others() -> None:
    empty = message(RecordDict())
    found = cut([empty])
    assert len(found.objects) == 2
    with pytest.raises(KeyError):
        found.parts("0" * 64)
