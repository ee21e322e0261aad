"""Which subgroups may be shown: none that is small, and none from which a small one follows by subtraction.

A coordinator has the figures of all cases, and sums can be subtracted. So no set of cases that is all cases less some
groups, or groups of one attribute less groups of another, may be of fewer than ten patients, unless it is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Cases = NDArray[np.bool_]
Floats = NDArray[np.float64]

_SLACK = 1e-9


def open_groups(
    by: Mapping[str, Places], people: Places, strata: Sequence[Cases], least: int
) -> dict[str, tuple[int, ...]]:
    """By attribute the groups that may be shown.

    `by` has each case's group (N,), -1 for none, by attribute; `people` (N,) whose a case is; `strata` are sets of
    cases (N,) of each of which a shown group must have at least `least` people, such as positives and negatives. Cases
    in no stratum count nowhere.
    """
    counted: Cases = np.logical_or.reduce(strata)
    whole = {name: _alone(group, people, strata, counted, least) for name, group in by.items()}
    found: dict[str, tuple[int, ...]] = {}
    for name, shown in whole.items():
        cells = _cells(by[name], shown)
        told = any(_tells(_cells(by[one], own), cells, people, strata, least) for one, own in found.items() if own)
        found[name] = () if told else shown
    return found


def _alone(group: Places, people: Places, strata: Sequence[Cases], counted: Cases, least: int) -> tuple[int, ...]:
    """Groups of one attribute: large enough, and so is what all of them leave over, if it is anything."""

    def enough(cases: Cases) -> bool:
        return all(len(np.unique(people[cases & stratum])) >= least for stratum in strata)

    sizes = {int(one): int((counted & (group == one)).sum()) for one in np.unique(group[counted]) if one >= 0}
    shown = [one for one in sizes if enough(group == one)]
    while shown:
        rest = counted & ~np.isin(group, shown)
        if not rest.any() or enough(rest):
            break
        shown.remove(min(shown, key=lambda one: (sizes[one], -one)))
    return tuple(sorted(shown))


def _cells(group: Places, shown: Sequence[int]) -> Places:
    """The shown group of each case, counted from 0, and after the last one what is left over."""
    cells = np.full(len(group), len(shown), np.int64)
    for at, one in enumerate(shown):
        cells[group == one] = at
    return cells


def _tells(first: Places, second: Places, people: Places, strata: Sequence[Cases], least: int) -> bool:
    """Whether groups of one attribute lie within groups of another, and few people between them."""
    shape = int(first.max(initial=0)) + 1, int(second.max(initial=0)) + 1
    unions = tuple(_unions(side) for side in shape)
    here: Floats = sum(
        (_people((first, second), people, stratum, shape, least=False) for stratum in strata), np.zeros(shape)
    )
    within = _between(here, *unions)
    fewest = [np.full_like(side, np.inf) for side in within]
    for stratum in strata:
        between = _between(_people((first, second), people, stratum, shape, least=True), *unions)
        fewest = [np.minimum(known, count) for known, count in zip(fewest, between, strict=True)]
    return any(
        bool(((within[1 - side] == 0) & (within[side] > 0) & (fewest[side] < least - _SLACK)).any()) for side in (0, 1)
    )


def _people(
    cells: tuple[Places, Places], people: Places, stratum: Cases, shape: tuple[int, int], *, least: bool
) -> Floats:
    """Cases by cell; or, for the `least` number of people in a union of cells, each spread over the cells he is in."""
    at = (cells[0] * shape[1] + cells[1])[stratum]
    if not least:
        return np.bincount(at, minlength=shape[0] * shape[1]).reshape(shape).astype(float)
    pairs = np.unique(np.stack([people[stratum], at], axis=1), axis=0)
    _, person, times = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    spread = np.bincount(pairs[:, 1], 1 / times[person] if len(pairs) else None, shape[0] * shape[1])
    return spread.reshape(shape).astype(float)


def _unions(cells: int) -> Floats:
    """All sets of so many cells, (sets, cells)."""
    return (np.arange(1 << cells)[:, None] >> np.arange(cells) & 1).astype(float)


def _between(table: Floats, rows: Floats, columns: Floats) -> tuple[Floats, Floats]:
    """By union of rows and union of columns how much of the table lies in the one alone, and in the other alone."""
    return rows @ table @ (1 - columns).T, (1 - rows) @ table @ columns.T
