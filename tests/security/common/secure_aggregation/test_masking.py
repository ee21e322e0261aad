"""A masked upload says nothing by itself, the sum of all is the sum, and whatever disagrees opens to nothing."""

from __future__ import annotations

import hmac
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import fedgraft.common.secure_aggregation.masking
from fedgraft.common.secure_aggregation.masking import (
    NotOpened,
    OutOfRange,
    TooFewSites,
    encode,
    mask,
    most,
)
from helpers.masks import Consortium, layout_of, opened

Named = dict[str, np.ndarray]
CHANCE = 1e-9
"""Keys are fresh in every run: noise that is sound fails a test of uniformity this often, and no other passes it."""


@pytest.fixture(scope="module")
def five() -> Consortium:
    return Consortium(5)


def update(seed: int, size: int = 1000) -> Named:
    rng = np.random.default_rng(seed)
    return {
        "body.weight": rng.normal(0, 0.3, (size // 10, 10)).astype(np.float32),
        "body.steps": np.array(rng.integers(0, 10_000), dtype=np.int64),
        "gram": rng.normal(0, 1e-9, (7, 7)),
        "weight/*": np.array(float(rng.integers(1, 500))),
    }


def updates(names: tuple[str, ...]) -> dict[str, Named]:
    return {name: update(seed) for seed, name in enumerate(names)}


def test_the_sum_of_masked_uploads_is_the_sum(five: Consortium) -> None:
    given = updates(five.names)
    found = opened([five.upload(name, arrays) for name, arrays in given.items()], given["east"])
    for key in given["east"]:
        total = np.sum([arrays[key].astype(np.float64) for arrays in given.values()], axis=0)
        assert np.abs(found[key] - total).max() < 1e-6
        assert found[key].shape == given["east"][key].shape
    # A sum of small numbers that came in float64 keeps them: 2^-24 would have swallowed these whole.
    gram = np.sum([arrays["gram"] for arrays in given.values()], axis=0)
    assert np.abs(found["gram"] - gram).max() < 1e-6 * np.abs(gram).max()


def test_a_weighted_mean_comes_out_without_its_weights(five: Consortium) -> None:
    given, weights = updates(five.names), dict(zip(five.names, (12.0, 700.0, 33.0, 1.0, 90.0), strict=True))
    uploads = []
    for name, weight in weights.items():
        arrays = {**given[name], "weight/*": np.array(weight)}
        uploads.append(five.upload(name, arrays, **{"body.weight": weight}))
    sums = opened(uploads, given["east"])
    mean = np.average(
        [a["body.weight"].astype(np.float64) for a in given.values()], axis=0, weights=list(weights.values())
    )
    assert sums["weight/*"] == sum(weights.values())
    assert np.abs(sums["body.weight"] / sums["weight/*"] - mean).max() < 1e-6


@pytest.mark.parametrize("content", ["an update", "zeros", "large"])
def test_one_upload_is_uniform_and_unlike_the_update(five: Consortium, content: str) -> None:
    rng = np.random.default_rng(1)
    values = {
        "an update": rng.normal(0, 0.01, 400_000),
        "zeros": np.zeros(400_000),
        "large": rng.normal(0, 1e9, 400_000),
    }
    arrays = {"body.weight": values[content].astype(np.float32)}
    words = five.upload("south", arrays)
    counts = np.bincount(words.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > CHANCE
    for byte in range(8):  # each byte of the words by itself, the sign's included
        assert stats.chisquare(np.bincount(words.view(np.uint8)[byte::8], minlength=256)).pvalue > CHANCE
    sent = words[4:].view(np.int64).astype(np.float64)
    if content != "zeros":
        assert abs(np.corrcoef(sent, arrays["body.weight"])[0, 1]) < 0.01
    other = five.upload("east", arrays)[4:].view(np.int64).astype(np.float64)
    assert abs(np.corrcoef(sent, other)[0, 1]) < 0.01


def test_a_missing_site_leaves_no_partial_sum(five: Consortium) -> None:
    given = updates(five.names)
    uploads = {name: five.upload(name, arrays) for name, arrays in given.items()}
    for missing in five.names:
        others = [words for name, words in uploads.items() if name != missing]
        for sites in (4, 5):
            with pytest.raises(NotOpened):
                opened(others, given["east"], sites)
    twice = [*uploads.values(), uploads["east"]]
    with pytest.raises(NotOpened):
        opened(twice, given["east"], 5)
    with pytest.raises(NotOpened):
        opened([*list(uploads.values())[:4], uploads["east"]], given["east"], 5)


def test_a_sum_of_nothing_does_not_open(five: Consortium) -> None:
    arrays = {"a": np.ones(3, np.float32)}
    with pytest.raises(NotOpened):
        opened([], arrays, 5)


def test_what_is_left_of_a_sum_without_one_site_is_noise(five: Consortium) -> None:
    """Even somebody who does not look at the tag finds nothing in four of five uploads."""
    arrays = {"body.weight": np.full(200_000, 0.5, np.float32)}
    total = sum(five.upload(name, arrays) for name in five.names[:4])
    assert stats.chisquare(np.bincount(total.view(np.uint8), minlength=256)).pvalue > CHANCE


@pytest.mark.parametrize(
    "change",
    [
        {"study": "another"},
        {"part": "metrics"},
        {"stage": 1},
        {"round": 2},
        {"exchange": 2},
        {"number": 2},
        {"received": "another model"},
        {"sites": {"east": "a", "north": "nonce of north", "south": "nonce of south"}},
    ],
)
def test_a_site_that_sees_anything_else_turns_the_sum_into_garbage(five: Consortium, change: dict) -> None:
    given = updates(five.names)
    if "sites" in change:
        change = {"sites": five.context().sites | {"east": "a nonce that east never drew"}}
    uploads = [
        five.upload(name, given[name], five.context(**change) if name == "west" else None) for name in five.names
    ]
    with pytest.raises(NotOpened):
        opened(uploads, given["east"])


def test_other_names_or_shapes_at_one_site_turn_the_sum_into_garbage(five: Consortium) -> None:
    given = {name: {"a": np.ones((2, 3), np.float32)} for name in five.names}
    for strange in ({"b": np.ones((2, 3), np.float32)}, {"a": np.ones((3, 2), np.float32)}):
        uploads = [five.upload(name, strange if name == "west" else arrays) for name, arrays in given.items()]
        with pytest.raises(NotOpened):
            opened(uploads, given["east"])


def test_sites_told_different_partners_open_to_nothing(five: Consortium) -> None:
    """The coordinator names one site a smaller group, to get at a sum that the others are not in."""
    given, nonces = updates(five.names), dict(five.context().sites)
    few = five.context(sites={name: nonces[name] for name in ("east", "north", "south")})
    uploads = {name: five.upload(name, given[name], few if name == "east" else None) for name in five.names}
    for taken in (five.names, ("east", "north", "south")):
        with pytest.raises(NotOpened):
            opened([uploads[name] for name in taken], given["east"])


def test_every_sum_draws_its_own_masks(five: Consortium) -> None:
    """The same update in two sums gives two uploads whose difference is as random as either of them."""
    arrays = {"body.weight": np.random.default_rng(2).normal(0, 1, 100_000).astype(np.float32)}
    one = five.upload("east", arrays)
    nonces = five.context().sites
    for other in ({"number": 2}, {"round": 2}, {"study": "b"}, {"sites": {**nonces, "east": "drawn anew"}}):
        difference = five.upload("east", arrays, five.context(**other)) - one
        assert stats.chisquare(np.bincount(difference.view(np.uint8), minlength=256)).pvalue > CHANCE


def test_two_sites_are_refused_with_the_reason(five: Consortium) -> None:
    two = dict.fromkeys(("east", "north"), "")
    arrays = {"a": np.ones(3, np.float32)}
    for attempt in (
        lambda: five.upload("east", arrays, five.context(sites=two)),
        lambda: mask(np.zeros(4, "<u8"), b"", two, five.pairs["east"]),
        lambda: encode(arrays, {}, layout_of(arrays), 2),
        lambda: five.context(sites=two).digest(layout_of(arrays), five.pairs["east"]),
    ):
        with pytest.raises(TooFewSites, match="masked sums need 3 sites"):
            attempt()


def test_a_site_masks_only_for_sums_that_it_is_in(five: Consortium) -> None:
    nonces = five.context().sites
    without = {name: nonces[name] for name in five.names if name != "east"}
    with pytest.raises(ValueError, match="not among"):
        five.upload("east", {"a": np.ones(3, np.float32)}, five.context(sites=without))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e11, -1e11])
def test_what_might_wrap_or_is_no_number_is_refused(five: Consortium, bad: float) -> None:
    values = np.zeros(100_000, np.float32)
    values[77_777] = bad
    with pytest.raises(OutOfRange):
        five.upload("east", {"a": values})
    with pytest.raises(OutOfRange):
        five.upload("east", {"a": values.astype(np.float64)})


def test_the_largest_values_of_all_sites_still_add_up() -> None:
    many = Consortium(50)
    arrays = {"a": np.array([most(50), -most(50)])}
    found = opened([many.upload(name, arrays) for name in many.names], arrays)
    assert np.abs(found["a"] / (50 * arrays["a"]) - 1).max() < 1e-12
    with pytest.raises(OutOfRange):
        many.upload("site00", {"a": arrays["a"] * 1.0001})


def test_more_words_than_one_key_has_noise_for_are_refused(five: Consortium, monkeypatch) -> None:
    """ChaCha20 counts its blocks in 32 bits, and would begin again."""
    monkeypatch.setattr(fedgraft.common.secure_aggregation.masking, "_MOST_WORDS", 10)
    assert len(five.upload("east", {"a": np.ones(6, np.float32)})) == 10
    with pytest.raises(OutOfRange, match="too many words"):
        five.upload("east", {"a": np.ones(7, np.float32)})


def test_uploads_of_another_form_are_refused(five: Consortium) -> None:
    arrays = {"a": np.ones(3, np.float32)}
    good = five.upload("east", arrays)
    for bad in (good[:-1], good.view(np.int64), good.reshape(1, -1)):
        with pytest.raises(ValueError, match="not an upload"):
            opened([bad], arrays)
    with pytest.raises(ValueError, match="not the arrays"):
        encode({"b": np.ones(3)}, {}, layout_of(arrays), 3)
    with pytest.raises(ValueError, match="another shape"):
        encode({"a": np.ones(4, np.float32)}, {}, layout_of(arrays), 3)


def test_flowers_masks_are_not_used() -> None:
    """Its generator has 32 bits of entropy: the masks of two sites are found in minutes."""
    root = Path(fedgraft.common.secure_aggregation.masking.__file__).parents[2]
    for folder in ("common", "client", "server", "simulations"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"pseudo_rand_gen|secaggplus|flwr\S*secure_aggregation", text), path


def test_masks_are_those_of_the_standards_written_out_by_hand(five: Consortium) -> None:
    """HKDF (RFC 5869) and ChaCha20 (RFC 8439) in a few lines of plain Python give the same words."""
    sites, digest = dict.fromkeys(five.names, ""), bytes(range(32))
    words = np.zeros(100, "<u8")
    mask(words, digest, sites, five.pairs["north"])
    expected = [0] * 100
    for other in five.names:
        if other == "north":
            continue
        secret = five.private[other].exchange(five.private["north"].public_key())
        both = [[name, five.roster.keys[name].hex()] for name in sorted(("north", other))]
        info = json.dumps(["fedgraft mask 1", both], separators=(",", ":")).encode()
        key = hmac.digest(hmac.digest(digest, secret, "sha256"), info + b"\x01", "sha256")
        noise = b"".join(chacha20_block(key, counter, bytes(12)) for counter in range(13))
        sign = 1 if other > "north" else -1
        for at in range(100):
            expected[at] += sign * int.from_bytes(noise[8 * at : 8 * at + 8], "little")
    assert words.tolist() == [value % 2**64 for value in expected]


def test_the_block_function_above_is_that_of_the_standard() -> None:
    """RFC 8439, section 2.3.2."""
    block = chacha20_block(bytes(range(32)), 1, bytes.fromhex("000000090000004a00000000"))
    assert block[:16].hex() == "10f1e7e4d13b5915500fdd1fa32071c4"


def chacha20_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    start = list(struct.unpack("<16I", b"expand 32-byte k" + key + counter.to_bytes(4, "little") + nonce))
    now = start.copy()
    for _ in range(10):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            quarter(now, a, b, c, d)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(now, a, b, c, d)
    return struct.pack("<16I", *((x + y) % 2**32 for x, y in zip(now, start, strict=True)))


def quarter(now: list[int], a: int, b: int, c: int, d: int) -> None:
    for into, by, mixed, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        now[into] = (now[into] + now[by]) % 2**32
        now[mixed] ^= now[into]
        now[mixed] = (now[mixed] << turn | now[mixed] >> (32 - turn)) % 2**32
