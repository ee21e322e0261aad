"""The entry points of what is installed, read once, and again when a folder of Python's path has changed.

To look for them reads a file of every distribution that there is, which takes longer than anything else that a study is
asked for.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

_GROUPS = "fedgraft."
_SETTLED_S = 5.0
"""A folder that changed less long ago may be one into which something is being installed."""
_Facts = tuple[int, int, int]


def points_of(kind: str) -> tuple[EntryPoint, ...]:
    """The entry points of the group `fedgraft.KIND`, as things are installed now."""
    folders = tuple(_facts(path) for path in sys.path)
    newest = max((changed for _, _, changed in folders), default=0)
    is_settled = time.time_ns() - newest > _SETTLED_S * 1e9
    found = _known((*sys.path,), folders) if is_settled else _read()
    return found.get(f"{_GROUPS}{kind}", ())


@lru_cache(maxsize=16)
def _known(_paths: tuple[str, ...], _folders: tuple[_Facts, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    return _read()


def _read() -> Mapping[str, tuple[EntryPoint, ...]]:
    """All of fedgraft's groups."""
    every = entry_points()
    return {group: tuple(every.select(group=group)) for group in every.groups if group.startswith(_GROUPS)}


def _facts(path: str) -> _Facts:
    """What changes when something is put into a folder, or taken out of it; the last is when, in ns. 0 of no folder."""
    try:
        facts = os.stat(path or ".")  # noqa: PTH116 - asked for every name
    except OSError:
        return 0, 0, 0
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns
