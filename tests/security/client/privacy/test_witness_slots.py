"""The witness of the egress log, which is written over in place: whatever tears a write, the mark before it stays."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from fedgraft.client.privacy.ledger.hash_chain import Mark
from fedgraft.client.privacy.ledger.witness_slots import read_slots, write_slots
from fedgraft.common.base.errors import LedgerError


def mark(seq: int) -> Mark:
    return Mark(seq, hashlib.sha256(str(seq).encode()).hexdigest())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A witness that has seen three messages."""
    path = tmp_path / "state.witness" / "egress.witness"
    for seq in (1, 2, 3):
        write_slots(path, mark(seq))
    return path


class Killed(SystemExit):
    """The machine is gone in the middle of a write."""


@pytest.mark.parametrize("begun", [3, 4], ids=["first place", "second place"])
def test_a_write_that_is_torn_at_any_byte_leaves_the_mark_before_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, begun: int
):
    write, seq = os.pwrite, begun
    write_slots(path, mark(begun), sync=False)
    for torn in range(len(path.read_bytes().splitlines()[0])):  # with all of these it is whole

        def part(descriptor: int, data: bytes, offset: int, torn: int = torn) -> int:
            write(descriptor, data[:torn], offset)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", part)
            with pytest.raises(Killed):
                write_slots(path, mark(seq + 1), sync=False)
        assert read_slots(path) == mark(seq), f"torn after {torn} bytes"
        seq += 2  # what comes next stands where the torn one was
        write_slots(path, mark(seq), sync=False)
        assert read_slots(path) == mark(seq)


def test_no_changed_byte_makes_another_mark(path: Path):
    whole = path.read_bytes()
    for at in range(len(whole.splitlines()[0]) + 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read_slots(path) in (mark(2), mark(3))


def test_marks_are_written_over_and_need_no_more_room(path: Path):
    """So that a disk that is full takes them, and no name is ever missing."""
    before = path.stat()
    for seq in range(4, 9):
        write_slots(path, mark(seq))
        now = path.stat()
        assert (now.st_ino, now.st_size, now.st_blocks) == (before.st_ino, before.st_size, before.st_blocks)
    assert before.st_blocks * 512 >= before.st_size, "no holes"
    assert before.st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_who_reads_while_another_writes_sees_marks_that_were_written_and_never_an_older_one(path: Path):
    seen, over = [], threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(read_slots(path))

    reader = threading.Thread(target=watch)
    reader.start()
    for seq in range(4, 1500):
        write_slots(path, mark(seq), sync=False)
    over.set()
    reader.join()
    assert [each.seq for each in seen] == sorted(each.seq for each in seen)
    assert all(each == mark(each.seq) for each in seen)


def test_the_last_mark_counts_also_if_people_settled_on_a_shorter_log(path: Path):
    write_slots(path, mark(1))
    assert read_slots(path) == mark(1)
    write_slots(path, mark(2))
    assert read_slots(path) == mark(2)


HARMS = {"empty": b"", "words": b"{}\n", "zeros": bytes(8192)}


@pytest.mark.parametrize("harm", [*HARMS, "gone", "a folder"])
def test_a_witness_that_is_gone_or_damaged_is_no_witness(path: Path, harm: str):
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm in HARMS:
        path.write_bytes(HARMS[harm])
    with pytest.raises(LedgerError, match=r"egress\.witness: the witness is missing or damaged"):
        read_slots(path)
    if harm != "a folder":
        write_slots(path, mark(9))  # as people settle on what is left
        assert read_slots(path) == mark(9)


def test_half_a_file_is_made_whole_with_the_next_mark(path: Path):
    os.truncate(path, 4096)
    assert read_slots(path) == mark(3)
    write_slots(path, mark(4))
    assert (read_slots(path), path.stat().st_size) == (mark(4), 8192)
