"""What is installed is read once, and what is installed or removed meanwhile is seen all the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fedgraft.common.plugins import entry_points as module
from fedgraft.common.plugins.entry_points import points_of
from helpers.plugins import install, make_wheel


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Python looks here first."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def put(name: str, folder: Path) -> None:
    install(make_wheel(folder.parent / "wheels", name, "1.0", {"fedgraft.losses": {name: "own:x"}}, {}), folder)


def settle(folder: Path) -> None:
    """As if the last change were an hour old."""
    an_hour_ago = folder.stat().st_mtime_ns - 3_600_000_000_000
    os.utime(folder, ns=(an_hour_ago, an_hour_ago))


def found(*names: str) -> set[str]:
    return {point.name for point in points_of("losses")} & set(names)


def test_what_is_installed_is_read_once_until_something_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = [], module.entry_points
    monkeypatch.setattr(module, "entry_points", lambda: reads.append(1) or read())
    put("alpha", folder)
    settle(folder)
    for _ in range(3):
        assert found("alpha", "beta") == {"alpha"}
    assert len(reads) == 1
    put("beta", folder)
    assert found("alpha", "beta") == {"alpha", "beta"}
    settle(folder)
    assert found("alpha", "beta") == {"alpha", "beta"}
    shutil.rmtree(folder / "alpha-1.0.dist-info")
    assert found("alpha", "beta") == {"beta"}


def test_what_is_half_unpacked_when_it_is_asked_for_is_seen_later(folder: Path) -> None:
    """Its folder is there, and the file that names its entry points comes a moment later."""
    put("gamma", folder)
    points = folder / "gamma-1.0.dist-info" / "entry_points.txt"
    points.rename(folder.parent / "later")
    assert found("gamma") == set()
    (folder.parent / "later").rename(points)
    assert found("gamma") == {"gamma"}


def test_a_folder_that_is_put_into_pythons_path_is_looked_into(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(folder)
    assert found("delta") == set()
    other = tmp_path / "other"
    put("delta", other)
    settle(other)
    monkeypatch.syspath_prepend(other)
    assert found("delta") == {"delta"}
