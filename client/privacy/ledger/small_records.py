"""What a site keeps for ever beside its ledger: its public numbers, and which figures it has shown, and to whom.

As sets of words, so that it is easily said whether a record has forgotten something that another tells of.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import locked, read_json, write_json

PUBLIC, SHOWN, RELEASES = "public_counts.json", "shown.json", "releases"
"""Names in the state folder: public numbers by unit; studies that were shown coarse counts; figures as they left."""

SmallRecords = Mapping[str, frozenset[str]]


def small_records(state: Path) -> SmallRecords:
    """All of them by name. A file that is damaged knows nothing."""
    public, shown = _content(state / PUBLIC), _content(state / SHOWN)
    folder = state / RELEASES
    there = os.path.isdir(folder)  # noqa: PTH112 - asked at every visit
    released = (path.relative_to(folder) for path in (folder.glob("*/*.safetensors") if there else ()))
    return {
        PUBLIC: frozenset(f"{unit}={count}" for unit, count in public.items()) if isinstance(public, dict) else _NONE,
        SHOWN: frozenset(map(str, shown)) if isinstance(shown, list) else _NONE,
        RELEASES: frozenset(str(path.with_suffix("")) for path in released),
    }


def remember(state: Path, shown: Iterable[str], public: Iterable[str]) -> None:
    """Put back what was forgotten: studies that count as shown, and public numbers, of a unit the first in `public`."""
    known = small_records(state)
    both = sorted({*known[SHOWN], *shown})
    pairs = [one.partition("=") for one in (*known[PUBLIC], *reversed(tuple(public)))]
    numbers = {unit: int(count) for unit, _, count in pairs if count.isdigit()}
    for name, content in ((SHOWN, both), (PUBLIC, numbers)):
        if content:
            with locked(state / name):
                write_json(state / name, content, private=True)


_NONE: frozenset[str] = frozenset()


def _content(path: Path) -> Any:
    try:
        return read_json(path) if os.path.exists(path) else None  # noqa: PTH110 - as above
    except InputError:
        return None
