"""Masks cancel exactly, whatever the words, the sites and their order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedgraft.common.secure_aggregation.masking import (
    Layout,
    MaskedSum,
    encode,
    mask,
    most,
)
from helpers.masks import NAMES, Consortium

TEN = Consortium(10)
SITES = st.lists(st.sampled_from(NAMES), min_size=3, max_size=10, unique=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), names=SITES, length=st.integers(0, 40))
def test_masked_words_add_up_exactly_modulo_2_to_the_64(data: st.DataObject, names: list[str], length: int) -> None:
    sites = dict.fromkeys(names, "")
    words = {name: data.draw(arrays(np.dtype("<u8"), length)) for name in names}
    total = np.zeros(length, "<u8")
    for name in data.draw(st.permutations(names)):
        upload = words[name].copy()
        mask(upload, b"context", sites, TEN.pairs[name])
        total += upload
    exact = [sum(int(words[name][at]) for name in names) % 2**64 for at in range(length)]
    assert total.tolist() == exact


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(3, 10), length=st.integers(0, 20), fine=st.booleans())
def test_opened_sums_are_the_sums_to_the_last_kept_bit(
    data: st.DataObject, count: int, length: int, fine: bool
) -> None:
    kind = np.float64 if fine else np.float32
    bound = float(np.nextafter(kind(most(count)), kind(0)))
    values = st.floats(-bound, bound, width=64 if fine else 32)
    layout = Layout.of({"a": ((length,), kind.__name__)})
    total, given_ = MaskedSum(layout, count), []
    for name in NAMES[:count]:
        array = data.draw(arrays(kind, length, elements=values))
        given_.append(array.astype(np.float64))
        words = encode({"a": array}, {}, layout, count)
        mask(words, b"context", dict.fromkeys(NAMES[:count], ""), TEN.pairs[name])
        total.add(words)
    exact = np.sum(given_, axis=0)
    allowed = count * 2.0 ** (-75 if fine else -25) + 4e-16 * count * np.abs(given_).max(axis=0, initial=0)
    assert (np.abs(total.open()["a"] - exact) <= allowed).all()
