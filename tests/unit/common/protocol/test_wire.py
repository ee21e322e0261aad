import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.privacy.accountant import Spend
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import (
    AggregationGroups,
    Code,
    Greeting,
    Hello,
    Instruction,
    MaskedUpdate,
    Refusal,
    Update,
)

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "count": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 4), dtype=np.float64),
    "sliced": np.arange(20, dtype=np.float64)[::3],
}


def over_the_wire(records: RecordDict) -> RecordDict:
    """Through Flower's own serialisation, as between two machines."""
    return recorddict_from_proto(recorddict_to_proto(records))


def same(left: dict, right: dict) -> bool:
    return set(left) == set(right) and all(
        left[k].dtype == right[k].dtype and left[k].shape == right[k].shape and (left[k] == right[k]).all()
        for k in left
    )


@pytest.mark.parametrize("views", [False, True])
def test_an_order_arrives_as_it_was_sent(views: bool):
    instruction = Instruction("digest", 3, 1, 2, True, "val", ARRAYS, held="abc")
    records = wire.pack_instruction(instruction, wire.pack_tensors(ARRAYS, views=views))
    got = wire.unpack_instruction(records if views else over_the_wire(records))
    assert (got.study, got.exchange, got.stage, got.round, got.work, got.evaluate, got.held) == (
        "digest",
        3,
        1,
        2,
        True,
        "val",
        "abc",
    )
    assert same(dict(got.tensors), ARRAYS)


def test_an_update_arrives_as_it_was_sent():
    metrics = {"cls": {"confusion": np.eye(2, dtype=np.int64)}}
    update = Update(4, ARRAYS, {"*": 12.0, "cls": 10.0}, {"loss": 0.5}, metrics)
    got = wire.unpack_reply(over_the_wire(wire.pack_reply(update)))
    assert isinstance(got, Update)
    assert same(dict(got.tensors), ARRAYS)
    assert same(dict(got.metrics["cls"]), metrics["cls"])
    assert (got.weights, got.train) == ({"*": 12.0, "cls": 10.0}, {"loss": 0.5})


def test_hello_greeting_and_refusal_arrive_as_they_were_sent():
    hello = Hello(b'{"name":"x"}')
    assert wire.unpack_hello(over_the_wire(wire.pack_hello(hello))) == hello
    greeting = Greeting("north", {"train": 3}, {"cls": {"a": 1}}, {"truncated": 2})
    assert wire.unpack_greeting(over_the_wire(wire.pack_greeting(greeting))) == greeting
    for code in Code:
        assert wire.unpack_reply(over_the_wire(wire.pack_reply(Refusal(2, code)))) == Refusal(2, code)


def test_a_masked_study_s_messages_arrive_as_they_were_sent():
    greeting = Greeting("north", {}, {}, labelled=False, evaluates=False, nonce="ab" * 16)
    assert wire.unpack_greeting(over_the_wire(wire.pack_greeting(greeting))) == greeting
    groups = AggregationGroups(3, {"tensors": {"north": "aa", "south": "bb"}, "metrics": {"north": "aa"}})
    instruction = Instruction("d", 1, 0, 1, True, None, ARRAYS, groups=groups)
    assert (
        wire.unpack_instruction(over_the_wire(wire.pack_instruction(instruction, wire.pack_tensors(ARRAYS)))).groups
        == groups
    )
    parts = {"tensors": np.arange(2**63, 2**63 + 5000, dtype=np.uint64), "metrics": np.zeros(3, np.uint64)}
    sent = MaskedUpdate(4, parts, {"tensors": "01", "metrics": "02"}, Spend(1.0, 0.01, "patient", steps=3))
    got = wire.unpack_reply(over_the_wire(wire.pack_reply(sent)))
    assert isinstance(got, MaskedUpdate)
    assert same(dict(got.parts), parts)
    assert (got.exchange, got.contexts, got.spent) == (4, sent.contexts, sent.spent)
    nothing = wire.unpack_reply(over_the_wire(wire.pack_reply(MaskedUpdate(4, {}, {}))))
    assert nothing == MaskedUpdate(4, {}, {})


@pytest.mark.parametrize(
    "groups",
    [
        *(3, [], {}, {"number": 1}, {"number": -1, "parts": {}}, {"number": 1, "parts": []}),
        {"number": 1, "parts": {"tensors": ["north"]}},
        {"number": 1, "parts": {"tensors": {"north": 3}}},
    ],
)
def test_circles_that_are_none_are_a_wire_error(groups: object):
    with pytest.raises(wire.WireError):
        wire.unpack_instruction(RecordDict({"words": words(groups=groups)}))


@pytest.mark.parametrize("contexts", [3, [], {}, {"metrics": "ab"}, {"tensors": 3}, {"tensors": "ab", "metrics": "ab"}])
def test_a_masked_answer_says_what_each_part_is_for(contexts: object):
    records = wire.pack_reply(MaskedUpdate(1, {"tensors": np.zeros(3, np.uint64)}, {"tensors": "ab"}))
    records["words"] = ConfigRecord({"json": json.dumps({"exchange": 1, "contexts": contexts})})
    with pytest.raises(wire.WireError):
        wire.unpack_reply(records)


def test_received_arrays_cannot_be_written_to():
    got = wire.unpack_instruction(
        wire.pack_instruction(Instruction("d", 1, 0, 1, True, None, ARRAYS), wire.pack_tensors(ARRAYS))
    )
    with pytest.raises(ValueError, match="read-only"):
        got.tensors["a.weight"][0, 0] = 1


def test_size_counts_every_byte_of_the_tensors():
    records = wire.pack_instruction(Instruction("d", 1, 0, 1, True, None, ARRAYS), wire.pack_tensors(ARRAYS))
    assert 24 + 8 + 7 * 8 < wire.size(records) < 24 + 8 + 7 * 8 + 300


def words(**changes: object) -> ConfigRecord:
    good = {"study": "d", "exchange": 1, "stage": 0, "round": 1, "work": True, "evaluate": None, "held": ""}
    return ConfigRecord({"json": json.dumps(good | changes)})


@pytest.mark.parametrize(
    "records",
    [
        {},
        {"words": ConfigRecord({"json": 3})},
        {"words": ConfigRecord({"json": "{"})},
        {"words": ConfigRecord({"json": "[]"})},
        {"words": ConfigRecord({"json": "[" * 100_000})},
        {"words": words(exchange=-1)},
        {"words": words(exchange=True)},
        {"words": words(exchange="1")},
        {"words": words(work=1)},
        {"words": words(evaluate="everything")},
        {"words": words(), "tensors": ConfigRecord({})},
        {"words": words(), "tensors": ArrayRecord({"a": Array("float32", (2,), "fedgraft.raw", b"1234")})},
        {"words": words(), "tensors": ArrayRecord({"a": Array("object", (1,), "fedgraft.raw", b"12345678")})},
        {
            "words": words(),
            "tensors": ArrayRecord({"a": Array("float32", (-1, -1), "fedgraft.raw", b"1234")}),
        },
        {"words": words(), "tensors": ArrayRecord({"a": Array(np.ones(2, dtype=np.float32))})},
    ],
)
def test_garbage_is_a_wire_error_and_nothing_else(records: dict):
    with pytest.raises(wire.WireError):
        wire.unpack_instruction(RecordDict(records))


BUNDLE = "fedgraft.bundle"


def bundle(index: object, data: bytes = b"", tail: bytes = b"") -> RecordDict:
    text = json.dumps(index).encode()
    head = len(text).to_bytes(4, "little") + text
    whole = head + bytes(-len(head) % 8) + data + tail
    return RecordDict({"words": words(), "tensors": ArrayRecord({"x": Array("uint8", (1,), BUNDLE, whole)})})


def test_a_bundle_holds_what_its_index_says():
    data = np.arange(2, dtype=np.float32).tobytes()
    got = wire.unpack_instruction(bundle([["a", "float32", [2]], ["b", "int64", []]], data + (5).to_bytes(8, "little")))
    assert same(dict(got.tensors), {"a": np.arange(2, dtype=np.float32), "b": np.array(5)})


@pytest.mark.parametrize(
    "records",
    [
        bundle([["a", "float32", [3]]], b"12345678"),
        bundle([["a", "float32", [2]]], b"12345678", b"more....."),
        bundle([["a", "float32", [-1]]], b"12345678"),
        bundle([["a", "float32", [2.0]]], b"12345678"),
        bundle([["a", "float32", [True]]], b"12345678"),
        bundle([["a", "float32", [1 << 40, 1 << 40]]], b"12345678"),
        bundle([["a", "object", [1]]], b"12345678"),
        bundle([["a", ["float32"], [2]]], b"12345678"),
        bundle([[1, "float32", [2]]], b"12345678"),
        bundle([["a", "float32", [2]], ["a", "float32", [2]]], b"1234567812345678"),
        bundle([["a", "float32"]], b"12345678"),
        bundle({"a": 1}),
        bundle(3),
        bundle([["a", "float32", "2"]], b"12345678"),
        RecordDict({"words": words(), "tensors": ArrayRecord({"x": Array("uint8", (1,), BUNDLE, b"")})}),
        RecordDict({"words": words(), "tensors": ArrayRecord({"x": Array("uint8", (1,), BUNDLE, b"\xff" * 9)})}),
        RecordDict(
            {
                "words": words(),
                "tensors": ArrayRecord(
                    {
                        "a": Array("float32", (1,), "fedgraft.raw", b"1234"),
                        "x": bundle([["a", "float32", [2]]], b"12345678")["tensors"]["x"],
                    }
                ),
            }
        ),
    ],
)
def test_a_damaged_bundle_is_a_wire_error_and_nothing_else(records: RecordDict):
    with pytest.raises(wire.WireError):
        wire.unpack_instruction(records)


@given(st.binary(max_size=60), st.integers(0, 80))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_bundle_or_a_wire_error(noise: bytes, at: int):
    good = wire.pack_tensors(ARRAYS)[BUNDLE].data
    for data in (noise, good[:at] + noise + good[at + len(noise) :], good[: len(good) - at]):
        record = ArrayRecord({"x": Array("uint8", (1,), BUNDLE, data)})
        try:
            wire.unpack_instruction(RecordDict({"words": words(), "tensors": record}))
        except wire.WireError:
            continue


@pytest.mark.parametrize(("views", "parts"), [(True, 2), (False, 1)])
def test_large_arrays_stay_where_they_are_within_a_process_and_all_travel_together_over_a_network(views, parts):
    arrays = ARRAYS | {"large": np.arange(9000, dtype=np.float32)}
    record = wire.pack_tensors(arrays, views=views)
    assert len(record) == parts
    records = RecordDict({"words": words(), "tensors": record})
    got = wire.unpack_instruction(records if views else over_the_wire(records))
    assert same(dict(got.tensors), arrays)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


KEYS = ("exchange", "weights", "train", "refused", "site", "cases", "labels", "contexts", "groups", "nonce")


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(KEYS), json_values))
@settings(max_examples=200, deadline=None)
def test_any_json_is_an_answer_or_a_wire_error(content: dict):
    records = RecordDict({"words": ConfigRecord({"json": json.dumps(content)})})
    for unpack in (wire.unpack_reply, wire.unpack_greeting, wire.unpack_instruction, wire.unpack_hello):
        try:
            unpack(records)
        except wire.WireError:
            continue
