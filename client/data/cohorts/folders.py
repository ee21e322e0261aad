"""All files below a folder, in a fixed order: linked folders are read, and what cannot be is named with a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedgraft.common.base.errors import DataError

NO_RIGHT, BROKEN, TWICE, HIDDEN, SPECIAL = (
    "folder_without_right",
    "broken_link",
    "folder_there_twice",
    "hidden",
    "special_file",
)
"""Why something in a folder was passed over before anybody looked whether it is an image."""


@dataclass(frozen=True)
class Found:
    """Files in order, and what was passed over, with its reason. A linked folder has the name of the link."""

    files: list[Path] = field(default_factory=list)
    passed_over: list[tuple[Path, str]] = field(default_factory=list)


def walk(root: Path) -> Found:
    """What lies below `root`. DataError if it is no folder, or may not be opened.

    Folders behind links come after all others, so that a link to a folder of `root` itself is what is passed over.
    """
    try:
        os.scandir(root).close()
        _place(root)
    except PermissionError:
        raise DataError(
            f"{root}: cannot be opened: Permission denied.",
            fix="Give this account the right to open the folder and to list what is in it.",
        ) from None
    except OSError:
        raise DataError(f"{root}: is no folder.", fix="Check `root` of the site's cohort.") from None
    found, seen = Found(), set[tuple[int, int]]()
    links = list(_below(root, found, seen))
    while links:
        links += _below(links.pop(0), found, seen)
    found.files.sort()
    found.passed_over.sort()
    return found


def is_there(path: Path, *, folder: bool = False) -> bool:
    """Whether a path is a file, or a folder; not if this account may not look."""
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError:
        return False


def within(inner: Path, outer: Path) -> bool:
    """Whether a path leads into a folder, or is that folder, links followed; links in a circle lead nowhere."""
    return Path(os.path.realpath(inner)).is_relative_to(os.path.realpath(outer))


def files(root: Path) -> list[Path]:
    """All files below a folder that may be of the cohort, in order. DataError as `walk`."""
    return walk(root).files


def _below(folder: Path, found: Found, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Take in a folder and those in it; yields linked folders, for later."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            place = _place(here)
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            found.passed_over.append((here, NO_RIGHT))
            continue
        if place in seen:
            found.passed_over.append((here, TWICE))
            continue
        seen.add(place)
        for entry in entries:
            path = here / entry.name
            if entry.name.startswith("."):
                found.passed_over.append((path, HIDDEN))
            elif (kind := _kind(entry)) == "folder":
                waiting.append(path)
            elif kind == "linked folder":
                yield path
            elif kind == "file":
                found.files.append(path)
            else:
                found.passed_over.append((path, kind))


def _place(folder: Path) -> tuple[int, int]:
    """What tells a folder from all others. PermissionError also for one whose names may be listed and not opened."""
    found = os.stat(f"{folder}/.")  # noqa: PTH116 - pathlib would leave out the dot
    return found.st_dev, found.st_ino


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "linked folder" if entry.is_symlink() else "folder"
        if entry.is_file():
            return "file"
    except OSError:
        return NO_RIGHT
    return SPECIAL if Path(entry.path).exists() else BROKEN
