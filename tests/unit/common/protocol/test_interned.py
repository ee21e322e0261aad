"""What several sites of a process got of one message is one object to all of them, and nothing else is."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Instruction, Interned

ENTRIES = {"backbone.weight": np.ones((64, 128), np.float32), "heads.t.bias": np.arange(2.0)}
ASKED = Instruction("0" * 64, 1, 0, 1, work=True, evaluate=None, tensors=ENTRIES)


def test_two_sites_have_one_object_for_each_array_of_a_message() -> None:
    records = wire.pack_instruction(ASKED, wire.pack_tensors(ENTRIES, views=True))
    one, other = (wire.unpack_instruction(records).tensors for _ in range(2))
    assert not any(one[key] is other[key] for key in ENTRIES)
    interned = Interned()
    first, second = interned.of(one), interned.of(other)
    assert list(second) == list(ENTRIES)
    assert all(first[key] is second[key] for key in ENTRIES)
    assert all(np.array_equal(second[key], ENTRIES[key]) for key in ENTRIES)


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
