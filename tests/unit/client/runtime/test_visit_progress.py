"""A site's own record of how far it has come, while others of its processes write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgraft.client.runtime.visit import progress
from fedgraft.client.runtime.visit.progress import set_aside, taken_up
from fedgraft.common.base.disk import read_bytes


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
