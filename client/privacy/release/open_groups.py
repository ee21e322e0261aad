"""Which subgroups may be shown: none that is small, and none from which a small one follows by subtraction.

A coordinator has the figures of all cases, and sums can be added and subtracted. So no sum of groups, of however many
attributes and each taken any number of times, may be one over fewer than ten patients, unless it is over none: women
less those of one ward are few, but also those who are in one of two groups alone, if nearly all are in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Cases = NDArray[np.bool_]
Floats = NDArray[np.float64]

_SLACK = 1e-9
_MOST_LOOKS = 1000
"""Spaces that are looked at, most often a handful; an attribute that needs more is not shown."""


def open_groups(
    by: Mapping[str, Places], people: Places, strata: Sequence[Cases], least: int
) -> dict[str, tuple[int, ...]]:
    """By attribute the groups that may be shown.

    `by` has each case's group (N,), -1 for none, by attribute; `people` (N,) whose a case is; `strata` are sets of
    cases (N,) of each of which a shown group must have at least `least` people, such as positives and negatives. Cases
    in no stratum count nowhere. Of attributes that tell of few together the later ones in `by` are not shown.
    """
    counted: Cases = np.logical_or.reduce(strata)
    whole = {name: _alone(group, people, strata, counted, least) for name, group in by.items()}
    found: dict[str, tuple[int, ...]] = {}
    cells: list[Places] = []
    for name, shown in whole.items():
        own = _cells(by[name], shown)
        told = bool(shown and cells) and _tells([*cells, own], people, strata, least)
        found[name] = () if told else shown
        cells += [own] if found[name] else []
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


def _tells(attributes: Sequence[Places], people: Places, strata: Sequence[Cases], least: int) -> bool:
    """Whether sums of some groups, each taken any number of times, are sums of few people.

    Cases that are together in all groups are one atom; such sums are known of every vector in the span of the groups.
    """
    atoms, at = np.unique(np.stack(attributes), axis=1, return_inverse=True)
    share = np.stack([_people(at.reshape(-1), people, stratum, atoms.shape[1]) for stratum in strata])
    there = share.any(axis=0)
    groups = np.concatenate([own == np.arange(own.max() + 1)[:, None] for own in atoms])[:, there].astype(float)
    _, values, span = np.linalg.svd(groups, full_matrices=False)
    return _some_few(span[values > _SLACK].T, share[:, there], least)


def _some_few(span: Floats, share: Floats, least: int) -> bool:
    """Whether a vector of a space, but 0, is 0 at all atoms but few.

    `span` (atoms, dimensions) is an orthonormal basis, `share` (strata, atoms) has the people of each atom.
    Of atoms with enough people together such a vector is 0 at one, and so is found among those that are 0 there. Where
    there are too many ways to look at, the answer is yes.
    """
    looked, todo = set[bytes](), [span]
    while todo:
        space = todo.pop()
        live = (np.abs(space) > _SLACK).any(axis=1)
        if not live.any() or live.tobytes() in looked:
            continue
        if len(looked) == _MOST_LOOKS or (share[:, live].sum(axis=1) < least - _SLACK).any():
            return True
        looked.add(live.tobytes())
        todo += [_zero_at(space, atom) for atom in _enough(share, np.flatnonzero(live), least)]
    return False


def _enough(share: Floats, atoms: Places, least: int) -> Places:
    """The largest of these atoms, until they have enough people of every stratum."""
    largest = atoms[np.argsort(-share[:, atoms].min(axis=0), kind="stable")]
    short = (np.cumsum(share[:, largest], axis=1) < least - _SLACK).any(axis=0)
    return largest[: int(short.sum()) + 1]


def _zero_at(space: Floats, atom: int) -> Floats:
    """The vectors of a space that are 0 at an atom, by an orthonormal basis as well."""
    turned, _ = np.linalg.qr(space[atom][:, None], mode="complete")
    kept: Floats = space @ turned[:, 1:]
    return kept


def _people(at: Places, people: Places, stratum: Cases, atoms: int) -> Floats:
    """By atom the people of a stratum, each spread over the atoms that they are in: together no more than there are."""
    pairs = np.unique(np.stack([people[stratum], at[stratum]], axis=1), axis=0)
    _, person, times = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    return np.bincount(pairs[:, 1], 1 / times[person] if len(pairs) else None, atoms).astype(float)
