"""Many pieces behind each other: what was framed is read again however it is cut, and nothing else is read at all."""

from __future__ import annotations

import pytest

from fedgraft.common.messages.frames import (
    HEAD_BYTES,
    LARGEST_PIECE,
    MOST_AT_ONCE,
    BrokenFrame,
    Condition,
    FrameReader,
    PieceHead,
    framed,
    head,
    joined,
    split,
    unframed,
)

NAMES = [f"{number:064x}" for number in range(MOST_AT_ONCE + 1)]
PIECES = [(NAMES[0], b"first"), (NAMES[1], b""), (NAMES[2], bytes(1000))]


def read(parts: list[bytes]) -> list[tuple[PieceHead, bytes]]:
    reader = FrameReader()
    found = [one for part in parts for one in reader.take(part)]
    reader.end()
    return found


@pytest.mark.parametrize("cut", [1, 7, HEAD_BYTES, HEAD_BYTES + 5, 999, 1 << 20])
def test_what_was_framed_is_read_again_however_it_is_cut(cut: int) -> None:
    whole = framed(PIECES) + head(NAMES[3], Condition.LATER) + head(NAMES[4], Condition.NONE)
    found = read([whole[start : start + cut] for start in range(0, len(whole), cut)])
    assert [(frame.name, content) for frame, content in found[:3]] == PIECES
    assert [frame.condition for frame, _ in found] == [Condition.HERE] * 3 + [Condition.LATER, Condition.NONE]
    assert unframed(whole) == found


@pytest.mark.parametrize("left", [1, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 3])
def test_the_first_half_of_a_piece_is_none(left: int) -> None:
    with pytest.raises(BrokenFrame):
        unframed(framed([(NAMES[0], b"first")])[:left])


def test_a_piece_that_is_too_large_is_refused_by_its_head() -> None:
    reader = FrameReader()
    assert list(reader.take(head(NAMES[0], Condition.HERE, LARGEST_PIECE))) == []
    for size in (LARGEST_PIECE + 1, 1 << 62):
        with pytest.raises(BrokenFrame):
            list(FrameReader().take(head(NAMES[0], Condition.HERE, size)))


def test_more_pieces_than_there_may_be_are_not_read() -> None:
    assert len(unframed(framed((name, b"x") for name in NAMES[:MOST_AT_ONCE]))) == MOST_AT_ONCE
    with pytest.raises(BrokenFrame):
        unframed(framed((name, b"x") for name in NAMES))


@pytest.mark.parametrize("bytes_", [b"\x03" + bytes(HEAD_BYTES - 1), b"\x01" + bytes(39) + b"\x01", b"<html>" * 20])
def test_what_is_no_head_is_refused(bytes_: bytes) -> None:
    with pytest.raises(BrokenFrame):
        unframed(bytes_)


def test_names_travel_as_one_text_and_each_counts_once() -> None:
    assert split(joined(NAMES[:3] + NAMES[:1])) == NAMES[:3]
    assert len(split(joined(NAMES[:MOST_AT_ONCE]))) == MOST_AT_ONCE


@pytest.mark.parametrize(
    "names", ["", joined(NAMES), "ab", NAMES[0] + ",", "g" * 64, "A" * 64, " " + NAMES[0][1:], "é" * 64]
)
def test_names_that_are_no_digests_or_too_many_are_refused(names: str) -> None:
    with pytest.raises(BrokenFrame):
        split(names)
