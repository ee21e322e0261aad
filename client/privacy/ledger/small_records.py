"""What a site keeps for ever beside its ledger: its public numbers, and which figures it has shown, and to whom.

As sets of words, so that it is easily said whether a record has forgotten something that another tells of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedgraft.common.base.disk import exists, listed
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import locked, read_json, write_json

PUBLIC, SHOWN, RELEASES, ANSWERED = "public_counts.json", "shown.json", "releases", "answered.json"
"""Names in the state folder: public numbers by unit; studies that were shown coarse counts; figures as they left;
digests of what was answered to those who asked what the site could supply."""

SURVIVAL, UNKNOWN = "survival:", "?"
"""Among those studies what begins like this is the question by which it was counted who left when; UNKNOWN if that is
lost."""

SmallRecords = Mapping[str, frozenset[str]]


def small_records(state: Path) -> SmallRecords:
    """All of them by name. A file that is damaged knows nothing."""
    there = [exists(place) for place in _places(state)]
    if not any(there):
        return _NOTHING
    public, shown, answered = (_content(state / name) for name in (PUBLIC, SHOWN, ANSWERED))
    folder = state / RELEASES
    released = (path.relative_to(folder) for path in (listed(folder, "*/*.safetensors") if there[-1] else ()))
    return {
        PUBLIC: frozenset(f"{unit}={count}" for unit, count in public.items()) if isinstance(public, dict) else _NONE,
        SHOWN: frozenset(map(str, shown)) if isinstance(shown, list) else _NONE,
        ANSWERED: frozenset(map(str, answered)) if isinstance(answered, list) else _NONE,
        RELEASES: frozenset(str(path.with_suffix("")) for path in released),
    }


def remember(state: Path, shown: Iterable[str], public: Iterable[str], answered: Iterable[str] = ()) -> None:
    """Put back what was forgotten: studies that count as shown, answers that were given, and public numbers, of a unit
    the first in `public`."""
    known = small_records(state)
    both = sorted({*known[SHOWN], *shown})
    pairs = [one.partition("=") for one in (*known[PUBLIC], *reversed(tuple(public)))]
    numbers = {unit: int(count) for unit, _, count in pairs if count.isdigit()}
    given = sorted({*known[ANSWERED], *answered})
    for name, content in ((SHOWN, both), (PUBLIC, numbers), (ANSWERED, given)):
        if content:
            with locked(state / name):
                write_json(state / name, content, private=True)


_NONE: frozenset[str] = frozenset()
_NOTHING: SmallRecords = MappingProxyType(dict.fromkeys((PUBLIC, SHOWN, ANSWERED, RELEASES), _NONE))


@lru_cache(maxsize=4096)
def _places(state: Path) -> tuple[str, str, str, str]:
    """Where they are, the folder of figures last."""
    return f"{state}/{PUBLIC}", f"{state}/{SHOWN}", f"{state}/{ANSWERED}", f"{state}/{RELEASES}"


def _content(path: Path) -> Any:
    try:
        return read_json(path) if exists(str(path)) else None
    except InputError:
        return None
