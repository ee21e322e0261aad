"""Real packed replies, changed in every way that whoever sends them could change them: read, or a WireError, and small.

Python puts no bound on a whole number in JSON, none on how deep lists stand in each other, and knows NaN; numpy makes
arrays of what it is told. A reader that believes any of it can be stopped by one reply.
"""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.privacy.accountant import Spend
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.answers import AskedPrice, SiteAnswer, TaskSupply
from fedgraft.common.protocol.bundle import WireError, pack_bundle, unpack_bundle
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
    "backbone.w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "count": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "large": np.arange(9000, dtype=np.float32),
}
SUMS = ClassificationSums.of(np.eye(3)[[0, 1, 2, 1]], np.array([0, 1, 2, 2])).arrays()
SPENT = Spend(1.5, 1e-4, "patient", steps=7)
GROUPS = AggregationGroups(3, {"tensors": {"north": "ab" * 16, "south": "cd" * 16}})

SUPPLY = TaskSupply({"a": (10, 14)}, (0, 9), (0, 9), "a")
ANSWER = SiteAnswer(
    "north",
    *(False, False, (20, 29)),
    *({"cls": SUPPLY}, {"vendor": {"GE": (20, 29)}}, {"age": (0, 9)}),
    AskedPrice(1.5, 1e-4, "budget"),
    *("ab" * 32, "cd" * 32),
)

READERS = {
    "update": wire.unpack_reply,
    "masked": wire.unpack_reply,
    "refusal": wire.unpack_reply,
    "greeting": wire.unpack_greeting,
    "instruction": wire.unpack_instruction,
    "hello": wire.unpack_hello,
    "answer": wire.unpack_answer,
    "pinned": wire.unpack_hello,
}


def real(kind: str, *, views: bool = False) -> RecordDict:  # noqa: PLR0911 - one for each kind of message
    match kind:
        case "update":
            answer = Update(2, ARRAYS, {"*": 12.0, "cls": 10.0}, {"loss": 0.5, "steps": 3}, {"cls": SUMS}, SPENT)
            return wire.pack_reply(answer, views=views)
        case "masked":
            parts = {"tensors": np.arange(5, dtype=np.uint64), "metrics": np.zeros(3, np.uint64)}
            return wire.pack_reply(MaskedUpdate(2, parts, {"tensors": "01", "metrics": "02"}, SPENT), views=views)
        case "refusal":
            return wire.pack_reply(Refusal(2, Code.DIVERGED, "north"))
        case "greeting":
            return wire.pack_greeting(Greeting("north", {"train": 3}, {"cls": {"a": 1}}, {"cut": 2}, nonce="ab" * 16))
        case "instruction":
            tensors = wire.pack_tensors(ARRAYS, views=views)
            return wire.pack_instruction(Instruction("d", 1, 0, 1, True, "val", ARRAYS, "ab", GROUPS), tensors)
        case "answer":
            return wire.pack_answer(ANSWER)
        case _:
            pins = {"north": ANSWER.pin} if kind == "pinned" else {}
            return wire.pack_hello(Hello(b'{"name":"x"}', agreement="ab" * 32, pins=pins))


RAW = [
    *("1" + "0" * 400, "-1" + "0" * 400, "1" + "0" * 5000, "1e999", "-1e999", "NaN", "Infinity", "-Infinity"),
    *("-1", "-0", "0", "1e-320", "0.5", "true", "false", "null", '""', '"1"', "[]", "{}", "[[0]]", '{"a":{"a":1}}'),
    *("[" * 50_000, '{"a":' * 2_000 + "1" + "}" * 2_000, "[" * 900 + "]" * 900, '"' + "x" * 100_000 + '"'),
    *('"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"a\\nb"', '{"a":1,"a":2}', "[" + "0," * 20_000 + "0]"),
    "{" + ",".join(f'"k{n}":1' for n in range(5000)) + "}",
    str(2**70),
    f"[0,{2**70}]",
    f"[0,{2**62}]",
    f"[{2**40},{2**40},0]",
    "[0" + ",1" * 100 + "]",
    "[-1,-1]",
    "[2.0]",
    "[true]",
    '["2"]',
]
"""Texts that stand where a value of the JSON stood; not all of them are JSON."""

hostile = st.sampled_from(RAW) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
).map(json.dumps)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in JSON, all of them, from the outermost on."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def with_raw(value: Any, path: tuple[Any, ...], raw: str) -> str:
    """The JSON with other text in one place."""
    if not path:
        return raw
    mark = "\u0007here\u0007"

    def put(inner: Any, rest: tuple[Any, ...]) -> Any:
        if not rest:
            return mark
        copy = dict(inner) if isinstance(inner, dict) else list(inner)
        copy[rest[0]] = put(inner[rest[0]], rest[1:])
        return copy

    return json.dumps(put(value, path)).replace(json.dumps(mark), raw)


def read(kind: str, records: RecordDict) -> Any:
    """What a message is read as, None for a WireError; anything else that is raised, or much memory, fails."""
    tracemalloc.start()
    try:
        found = READERS[kind](records)
    except WireError:
        found = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40 * wire.size(records) + (2 << 20), "a message takes memory that it does not have"
    return found


def sane(found: Any) -> None:
    """What was read can be worked with: numbers are finite, names can be written, arrays are what they weigh."""
    if isinstance(found, Update):
        numbers = [*found.weights.values(), *found.train.values()]
        assert all(type(number) is float and math.isfinite(number) for number in numbers)
    if isinstance(found, Update | MaskedUpdate) and found.spent is not None:
        assert math.isfinite(found.spent.epsilon)
        assert found.spent.steps < 1 << 60
    if isinstance(found, Greeting):
        assert all(0 <= count < 1 << 60 for count in found.cases.values())
        assert all(name.isprintable() for name in (found.site, *found.cases, *found.labels, *found.problems))
        found.site.encode()
        assert len(found.nonce) in (0, 32)
    if isinstance(found, SiteAnswer):
        bands = [
            found.patients,
            *found.missing.values(),
            *(one for own in found.facts.values() for one in own.values()),
        ]
        for supply in found.tasks.values():
            bands += [supply.rest, supply.unknown, *supply.words.values()]
        assert all(0 <= least <= most < 1 << 60 for least, most in bands)
        words = [found.site, *found.tasks, *found.facts, *(word for own in found.facts.values() for word in own)]
        assert all(word.isprintable() and word.encode() for word in words)
        assert math.isfinite(found.price.epsilon)
    for arrays in (getattr(found, "tensors", {}), getattr(found, "parts", {}), *getattr(found, "metrics", {}).values()):
        for name, array in arrays.items():
            name.encode()
            assert all(side <= 1 << 40 for side in array.shape)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("kind", READERS)
def test_the_real_messages_are_read(kind: str, views: bool):
    found = read(kind, real(kind, views=views))
    assert found is not None
    sane(found)


@given(st.sampled_from(sorted(READERS)), st.data())
@settings(max_examples=400, deadline=None)
def test_any_value_of_a_message_s_words_may_be_anything(kind: str, data: st.DataObject):
    records = real(kind)
    words = json.loads(records["words"]["json"])
    text = with_raw(words, data.draw(st.sampled_from(places(words))), data.draw(hostile))
    records["words"] = ConfigRecord({"json": text})
    sane(read(kind, records))


@pytest.mark.parametrize("kind", READERS)
def test_every_value_of_a_message_s_words_stands_every_text(kind: str):
    """The same without chance: each place, each text."""
    records = real(kind)
    words = json.loads(records["words"]["json"])
    for path in places(words):
        for raw in RAW:
            records["words"] = ConfigRecord({"json": with_raw(words, path, raw)})
            try:
                sane(READERS[kind](records))
            except WireError:
                continue


def with_list(data: bytes, text: bytes) -> bytes:
    """A bundle with another list in front of the same arrays."""
    length = int.from_bytes(data[:4], "little")
    body = data[4 + length + -(4 + length) % 8 :]
    return len(text).to_bytes(4, "little") + text + bytes(-(4 + len(text)) % 8) + body


def test_every_value_of_a_bundle_s_list_stands_every_text():
    good = pack_bundle(ARRAYS)
    listed = json.loads(good[4 : 4 + int.from_bytes(good[:4], "little")])
    for path in places(listed):
        for raw in RAW:
            bad = with_list(good, with_raw(listed, path, raw).encode())
            try:
                found = unpack_bundle(memoryview(bad))
            except WireError:
                continue
            assert sum(array.nbytes for array in found.values()) <= len(bad)


@given(st.sampled_from(["update", "masked", "instruction"]), st.data())
@settings(max_examples=300, deadline=None)
def test_any_bytes_of_any_array_may_be_anything(kind: str, data: st.DataObject):
    records = real(kind, views=data.draw(st.booleans()))
    name = data.draw(st.sampled_from([name for name, record in records.items() if isinstance(record, ArrayRecord)]))
    key = data.draw(st.sampled_from(sorted(records[name])))
    array = records[name][key]
    content = bytearray(array.data)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, max(0, min(len(content), 600))))
        match data.draw(st.sampled_from(["flip", "cut", "put", "double"])):
            case "flip":
                content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[at : at + data.draw(st.integers(1, 2000))]
            case "put":
                content[at:at] = data.draw(st.binary(max_size=20))
            case _:
                content += bytes(content)
    shape = data.draw(st.sampled_from([array.shape, (0, 2**70), (2**70,), (-1,), (True,), (1,) * 100, (2**31, 2**31)]))
    dtype = data.draw(st.sampled_from([array.dtype, "float32", "object", "O", "<f4", "float16", "S9", "", "void"]))
    stype = data.draw(st.sampled_from([array.stype, "fedgraft.raw", "fedgraft.bundle", "numpy.ndarray", ""]))
    records[name][key] = Array(dtype, shape, stype, bytes(content))
    sane(read(kind, records))


@given(st.sampled_from(sorted(READERS)), st.permutations(["words", "tensors", "metrics", "secure_aggregation"]))
@settings(max_examples=60, deadline=None)
def test_records_may_be_of_any_kind(kind: str, names: list[str]):
    records = real(kind)
    given_ = [*records.values(), ConfigRecord({"json": "{}"}), ConfigRecord({"json": 3}), ArrayRecord()]
    read(kind, RecordDict(dict(zip(names, given_, strict=False))))


def test_so_many_arrays_are_none():
    many = {f"a{n}": np.zeros(0, np.float32) for n in range((1 << 16) + 1)}
    with pytest.raises(WireError):
        unpack_bundle(memoryview(pack_bundle(many)))


@pytest.mark.slow
def test_a_list_that_is_long_is_not_remembered():
    """Lists are kept because they are the same in every message; one that an attacker makes long must not stay."""
    tracemalloc.start()
    for n in range(20):
        many = {f"{n}.{'x' * 200}.{m}": np.zeros(0, np.float32) for m in range(2000)}
        unpack_bundle(memoryview(pack_bundle(many)))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 4 << 20


def test_what_is_not_finite_is_not_sent():
    with pytest.raises(ValueError, match="JSON"):
        wire.pack_reply(Update(1, {}, {}, {"loss": math.nan}, {}))
