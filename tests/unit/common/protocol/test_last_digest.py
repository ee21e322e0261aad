"""The digest of entries that stay is worked out once; of anything else it is that of what is there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedgraft.common.protocol.instructions import Arrays, Digests, LastDigest


class Counted(Digests):
    """Says how often it was asked."""

    asked = 0

    def of(self, arrays: Arrays) -> str:
        self.asked += 1
        return super().of(arrays)


ENTRIES = {f"layer{at}": np.arange(at + 2, dtype=np.float32) for at in range(5)}


def test_the_same_arrays_are_looked_at_once() -> None:
    digests = Counted()
    last = LastDigest(digests)
    first = last.of(ENTRIES)
    assert [last.of(dict(ENTRIES)) for _ in range(3)] == [first] * 3
    assert (digests.asked, first) == (1, Digests().of(ENTRIES))


CHANGES: dict[str, Callable[[], Arrays]] = {
    "one value": lambda: ENTRIES | {"layer3": ENTRIES["layer3"] + 1},
    "one array of the same values": lambda: ENTRIES | {"layer3": ENTRIES["layer3"].copy()},
    "one fewer": lambda: {key: array for key, array in ENTRIES.items() if key != "layer4"},
    "one more": lambda: ENTRIES | {"layer5": np.zeros(3)},
    "another name": lambda: {key.replace("r4", "r9"): array for key, array in ENTRIES.items()},
    "two that changed places": lambda: ENTRIES | {"layer1": ENTRIES["layer2"], "layer2": ENTRIES["layer1"]},
    "part of one": lambda: ENTRIES | {"layer3": ENTRIES["layer3"][:2]},
    "none": dict,
}


@pytest.mark.parametrize("change", CHANGES)
def test_of_other_arrays_it_is_theirs(change: str) -> None:
    last = LastDigest(Digests())
    before = last.of(ENTRIES)
    after = CHANGES[change]()
    assert last.of(after) == Digests().of(after)
    assert (last.of(after) == before) == (change == "one array of the same values")
    assert last.of(ENTRIES) == before
