"""Updates that wait for their turn: the same values, and no more memory for more sites."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.protocol.instructions import Update
from fedgraft.server.rounds.exchange import out_of_turn
from fedgraft.server.rounds.exchange.out_of_turn import OutOfTurn

MB = 1 << 20


def update(number: int, size: int = MB // 4) -> Update:
    tensors = {
        "whole": np.full((2, size // 2), number, np.float32),
        "flags": np.array([True, False, True]),
        "count": np.array(number),
        "none": np.zeros((0, 3), np.float32),
        "half": np.array([[0.5, np.nan]], np.float16),
    }
    return Update(1, tensors, {"*": 1.0}, {}, {})


@pytest.mark.parametrize("most", [0, 100 * MB])
def test_what_is_taken_is_what_was_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(out_of_turn, "MOST_BYTES", most)
    waiting = OutOfTurn(tmp_path)
    for number in range(4):
        waiting.put(f"site{number}", update(number))
    waiting.put("refused", None)
    assert "refused" in waiting
    assert waiting.take("refused") is None
    assert "refused" not in waiting
    for number in (2, 0, 3, 1):
        found, sent = waiting.take(f"site{number}"), update(number)
        assert found is not None
        assert found.tensors.keys() == sent.tensors.keys()
        for key, array in sent.tensors.items():
            own = found.tensors[key]
            assert (own.dtype, own.shape, own.tobytes()) == (array.dtype, array.shape, array.tobytes()), key
            assert own.flags.aligned
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_sites_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_turn, "MOST_BYTES", 4 * MB)
    waiting = OutOfTurn(tmp_path)
    tracemalloc.start()
    try:
        for number in range(30):
            waiting.put(f"site{number}", update(number))
        assert tracemalloc.get_traced_memory()[0] < 6 * MB
    finally:
        tracemalloc.stop()


def test_without_room_they_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_turn, "MOST_BYTES", 0)
    waiting = OutOfTurn(tmp_path / "absent")
    for number in range(3):
        waiting.put(f"site{number}", update(number))
    assert [float(waiting.take(f"site{number}").tensors["whole"][0, 0]) for number in range(3)] == [0, 1, 2]
