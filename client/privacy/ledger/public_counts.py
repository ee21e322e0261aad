"""How many patients a site has, as others may know it: one coarse number, fixed when it is first needed.

What leaves a site must not follow the true count: the spread of a noised sum tells what it was divided by, and a delta
of 1/N tells N. So these use a number that stays as it is however many patients come and go. It says how large the site
was when it first took part, to within a step; that much is public from then on.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from fedgraft.common.base.files import locked, read_json, write_json
from fedgraft.common.privacy.accountant import Unit

_LEAST = 10
_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)


def coarse(count: int) -> int:
    """The next of 1, 1.5, 2, 3, 5, 7, 10, 15, ... times a power of ten that is not below; at least 10."""
    size = _LEAST
    while True:
        for step in _STEPS:
            if step * size >= count:
                return round(step * size)
        size *= 10


def band(count: int) -> tuple[int, int]:
    """The fewest and the most that a count may be, by the same steps; what is below ten is not told from nothing."""
    if count < _LEAST:
        return 0, _LEAST - 1
    size = _LEAST
    while True:
        edges = [round(step * size) for step in (*_STEPS, 10.0)]
        for low, above in itertools.pairwise(edges):
            if low <= count < above:
                return low, above - 1
        size *= 10


class PublicCounts:
    """The site's public counts by unit, on its disk, the same for all studies; not written unless it `fixes`."""

    def __init__(self, path: Path, *, fixes: bool = True) -> None:
        self._path = path
        self._fixes = fixes
        self._known: dict[str, int] = {}

    def of(self, unit: Unit, count: int) -> int:
        """The public number of units; made of `count` the first time, and never again."""
        if unit not in self._known:
            with locked(self._path):
                self._known = dict(read_json(self._path)) if self._path.exists() else {}
                if unit not in self._known:
                    self._known[unit] = coarse(count)
                    if self._fixes:
                        write_json(self._path, self._known, private=True)
        return self._known[unit]
