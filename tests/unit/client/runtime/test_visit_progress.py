"""A site's own record of how far it has come, while others of its processes write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgraft.client.runtime.visit import progress
from fedgraft.client.runtime.visit.progress import Progress, set_aside, taken_up
from fedgraft.common.base.disk import read_bytes
from fedgraft.common.study.schedule import Step


def test_a_record_that_is_set_aside_while_it_is_read_is_read_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new course of the study begins in another process, between a look at the names and one into the files."""
    record, looks = tmp_path / "study.log", []
    (tmp_path / "study.log.before-1").write_text("greeted\n1 -\n2 0\n")
    record.write_text("greeted\n1 0\n3 0\n")

    def read(path: Path) -> bytes:
        looks.append(path)
        if len(looks) == 1:
            set_aside(record)
        return read_bytes(path)

    monkeypatch.setattr(progress, "read_bytes", read)
    assert taken_up(record) == {1, 2, 3}


def test_a_record_is_what_its_file_says_now_however_often_it_was_read(tmp_path: Path) -> None:
    """What was read before is no answer: the file may be an older copy, or be written over in place by one."""
    record = tmp_path / "study.log"
    for content, numbers in (
        ("\n1 0\n", {1}),
        ("\n1 0\n\n2 0\n", {1, 2}),
        ("\n1 0\n\n2 0\n\n3 -\n4", {1, 2, 3}),
        ("\n1 0\n\n2 0\n\n3 -\n41 0\n", {1, 2, 3, 41}),
        ("\n7 0\n\n2 0\n\n3 -\n41 0\n", {7, 2, 3, 41}),
        ("\n7 0\n\n2 0\n", {7, 2}),
    ):
        record.write_text(content)
        assert taken_up(record) == taken_up(record) == numbers


def test_what_another_process_adds_between_two_lines_of_this_one_counts(tmp_path: Path) -> None:
    """A site of two processes: each knows its own lines without reading them, and reads those of the other."""
    one, other = (Progress(tmp_path / "study.log", sync=False) for _ in range(2))
    for number, (who, stage) in enumerate([(one, 0), (one, 1), (other, 2), (one, 3), (other, 4), (one, 5)], start=1):
        who.take_up(Step(number, stage, 1, work=True), work=True)
        assert who.last == number
    assert one.worked == other.worked == {0, 1, 2, 3, 4, 5}
    assert one.last == other.last == 6


def test_a_torn_line_is_no_part_of_the_line_that_follows_it(tmp_path: Path) -> None:
    record = tmp_path / "study.log"
    one = Progress(record, sync=False)
    one.take_up(Step(1, 0, 1, work=True), work=True)
    with record.open("ab") as file:
        file.write(b"\n7")  # another process was killed here
    one.take_up(Step(2, 1, 1, work=True), work=True)
    assert (one.last, one.worked) == (2, {0, 1})
    assert Progress(record).last == 2
