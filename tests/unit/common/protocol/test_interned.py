"""What several sites of a process got of one message is one object to all of them, and nothing else is."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Instruction, Interned

ENTRIES = {"backbone.weight": np.ones((64, 128), np.float32), "heads.t.bias": np.arange(2.0)}
ASKED = Instruction("0" * 64, 1, 0, 1, work=True, evaluate=None, tensors=ENTRIES)


def test_two_sites_have_one_object_for_each_array_of_a_message() -> None:
    packed = wire.pack_tensors(ENTRIES, views=True)
    again = ArrayRecord()
    for name, array in packed.items():
        again[name] = array
    two = [wire.pack_instruction(ASKED, record) for record in (packed, again)]
    one, other = (wire.unpack_instruction(records).tensors for records in two)
    assert not any(one[key] is other[key] for key in ENTRIES)
    interned = Interned()
    first, second = interned.of(one), interned.of(other)
    assert list(second) == list(ENTRIES)
    assert all(first[key] is second[key] for key in ENTRIES)
    assert all(np.array_equal(second[key], ENTRIES[key]) for key in ENTRIES)


def test_a_record_that_several_sites_get_is_read_once() -> None:
    packed = wire.pack_tensors(ENTRIES, views=True)
    one, other = (wire.unpack_instruction(wire.pack_instruction(ASKED, packed)).tensors for _ in range(2))
    assert one is not other
    assert list(other) == list(ENTRIES)
    assert all(one[key] is other[key] for key in ENTRIES)


def test_a_record_with_other_arrays_than_before_is_read_anew() -> None:
    packed = wire.pack_tensors(ENTRIES, views=True)
    wire.unpack_instruction(wire.pack_instruction(ASKED, packed))
    for name, array in wire.pack_tensors({key: array + 1 for key, array in ENTRIES.items()}, views=True).items():
        packed[name] = array
    found = wire.unpack_instruction(wire.pack_instruction(ASKED, packed)).tensors
    assert all(np.array_equal(found[key], ENTRIES[key] + 1) for key in ENTRIES)
    packed["another"] = Array("float32", (2,), "fedgraft.raw", b"too few")
    with pytest.raises(wire.WireError):
        wire.unpack_instruction(wire.pack_instruction(ASKED, packed))


def test_what_a_record_held_goes_with_it() -> None:
    packed = wire.pack_tensors(ENTRIES, views=True)
    found = wire.unpack_instruction(wire.pack_instruction(ASKED, packed)).tensors
    gone = weakref.ref(found["heads.t.bias"])
    del found, packed
    gc.collect()
    assert gone() is None


def test_equal_values_elsewhere_and_other_readings_of_the_same_memory_are_other_arrays() -> None:
    interned, array = Interned(), np.arange(6.0)
    others = [array.copy(), array.reshape(2, 3), array.view(np.int64), array[::2], array.reshape(2, 3).T]
    held = interned.of({"": array})
    for other in others:
        assert interned.of({"": other})[""] is other
    assert held[""] is array


def test_an_array_that_nobody_holds_any_more_is_forgotten() -> None:
    interned, array = Interned(), np.arange(6.0)
    gone = weakref.ref(array)
    interned.of({"": array})
    del array
    gc.collect()
    assert gone() is None
