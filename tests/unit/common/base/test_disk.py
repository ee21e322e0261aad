"""Whether files can be written to a place is found out without leaving anything there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest

from fedgraft.common.base.disk import demand_place, listed, oldest_first
from fedgraft.common.base.files import write_atomic
from helpers.no_room import files_up_to


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("place", ["new", "new/below/that", "old", "."])
@pytest.mark.parametrize("file", [False, True])
def test_a_look_at_a_place_leaves_it_as_it_was(tmp_path: Path, place: str, file: bool) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a file").write_text("as before")
    before = everything(tmp_path)
    demand_place(tmp_path / place / "a file" if file else tmp_path / place, file=file)
    assert everything(tmp_path) == before
    assert (tmp_path / "old" / "a file").read_text() == "as before"


@pytest.mark.parametrize(
    ("place", "file", "wrong"),
    [
        ("a file", False, errno.ENOTDIR),
        ("a file/run", False, errno.ENOTDIR),
        ("a file/run/below", True, errno.ENOTDIR),
        ("a folder", True, errno.EISDIR),
        ("a loop/run", False, errno.ENOTDIR),
        ("x" * 300, False, errno.ENAMETOOLONG),
        ("x" * 300, True, errno.ENAMETOOLONG),
        ("new/" + "x" * 300, True, errno.ENAMETOOLONG),
        ("/proc/self/run", False, errno.ENOENT),
        ("/proc/self/run", True, errno.ENOENT),
    ],
)
def test_what_cannot_be_written_is_told_by_its_own_name(tmp_path: Path, place: str, file: bool, wrong: int) -> None:
    (tmp_path / "a file").write_text("x")
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a loop").symlink_to(tmp_path / "a loop")
    before = everything(tmp_path)
    with pytest.raises(OSError, match=os.strerror(wrong)) as failed:
        demand_place(tmp_path / place, file=file)
    assert failed.value.filename == str(tmp_path / place)
    assert everything(tmp_path) == before


def test_a_full_disk_is_found_out_and_nothing_is_left(tmp_path: Path) -> None:
    with files_up_to(0), pytest.raises(OSError, match="File too large") as failed:
        demand_place(tmp_path / "run")
    assert failed.value.filename == str(tmp_path / "run")
    assert everything(tmp_path) == []


@pytest.mark.parametrize("what", ["no room", "a folder in its place", "below a file"])
def test_a_write_that_fails_names_the_file_and_not_the_passing_one(tmp_path: Path, what: str) -> None:
    """It named `.result.json.3fa94c01`, which nobody had heard of."""
    path = tmp_path / "result.json"
    if what == "a folder in its place":
        (path / "x").mkdir(parents=True)
    elif what == "below a file":
        path.write_text("x")
        path /= "below"
    room = files_up_to(0) if what == "no room" else contextlib.nullcontext()
    with room, pytest.raises(OSError, match=r".") as failed:
        write_atomic(path, b"content")
    assert failed.value.filename == str(path) or what == "below a file"
    assert not list(tmp_path.glob(".*"))


def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path) -> None:
    """The name of the file that becomes it was ten letters longer, and too long."""
    path = tmp_path / ("x" * 255)
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"


def test_what_is_taken_away_while_it_is_listed_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process of the same site puts away one study's folder between a look at the names and one into it."""
    for study in ("a", "b", "c"):
        (tmp_path / study / "kept").mkdir(parents=True)
        (tmp_path / study / "kept" / "1.json").touch()
    look = os.scandir

    def scandir(place: str | Path) -> object:
        if str(place) == str(tmp_path / "b" / "kept"):
            shutil.rmtree(tmp_path / "b", ignore_errors=True)
        return look(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert listed(tmp_path, "*/kept/*", "*/1.json") == [tmp_path / study / "kept" / "1.json" for study in "ac"]


def test_the_oldest_of_what_is_still_there_comes_first(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "dacb"]
    for at, path in enumerate(paths):
        path.touch()
        os.utime(path, ns=(at, at))
    paths[1].unlink()
    assert [path.name for path in oldest_first(sorted(paths))] == ["d", "c", "b"]
