"""Halves of symmetric matrices are the matrices, in double precision to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.common.protocol.instructions import NOISE
from fedgraft.common.protocol.packed_symmetric import cells, packed, unpacked

Z = np.random.default_rng(0).normal(size=(3, 20, 6))
GRAMS = Z.transpose(0, 2, 1) @ Z
GRAMS = (GRAMS + GRAMS.transpose(0, 2, 1)) / 2


@pytest.mark.parametrize("gram", [GRAMS[0], GRAMS, np.array([[7.0]])])
def test_what_is_folded_unfolds_to_the_same_bits(gram: np.ndarray) -> None:
    sums = {"cls/gram": gram, "cls/cross": Z[0], "count": np.arange(3.0)}
    sent = packed(sums)
    assert sent["cls/triangle"].shape == (*gram.shape[:-2], cells(gram.shape[-1]))
    assert (sent["cls/triangle"][..., -1] == gram[..., -1, -1]).all(), "the last number is the count of cases"
    back = unpacked(sent)
    assert back.keys() == sums.keys()
    assert all(np.array_equal(back[key], sums[key]) for key in sums)


def test_single_precision_is_a_matter_of_the_way_alone() -> None:
    sums = {"cls/gram": GRAMS[0], "cls/cross": Z[0], NOISE: np.array([0.1])}
    sent = packed(sums, "float32")
    assert [array.dtype.name for array in sent.values()] == ["float32", "float32", "float64"]
    back = unpacked(sent)
    assert {array.dtype.name for array in back.values()} == {"float64"}
    assert back[NOISE] == 0.1
    assert np.abs(back["cls/gram"] / GRAMS[0] - 1).max() < 1e-6
    assert not np.array_equal(back["cls/gram"], GRAMS[0])


def test_what_is_taken_in_is_no_view_of_what_came() -> None:
    sent = packed({"cls/gram": GRAMS[0], "cls/cross": Z[0].copy()})
    back = unpacked(sent)
    for array in sent.values():
        array[...] = 0
    assert np.array_equal(back["cls/gram"], GRAMS[0])
    assert np.array_equal(back["cls/cross"], Z[0])
