"""How alike sites are, and which belong together, from the sums of features that a closed-form head is solved from.

The sums of a task with classes are `gram` = sum z z' (d+1, d+1) and `cross` = sum z y' (d+1, C), with z = [features; 1]
and y one-hot. They add up: those of a cluster are the sum of its sites'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

_TINY = 1e-10
_SURE = 2.0
"""Sites differ by more than chance if they lie this many times further apart than chance would put them."""
_LARGE = 0.5
"""With many cases any two sites differ by more than chance; to be worth a model each, by so many deviations."""
_FEWEST = 2.0
"""Cases of a class at a site, below which its mean says nothing."""


@dataclass(frozen=True)
class SiteSums:
    """One site's sums of one task; `cross` is None where the task does not ask for one of some classes."""

    gram: np.ndarray
    cross: np.ndarray | None = None

    def __add__(self, other: SiteSums) -> SiteSums:
        cross = None if self.cross is None or other.cross is None else self.cross + other.cross
        return SiteSums(self.gram + other.gram, cross)


@dataclass(frozen=True)
class Apart:
    """Two sites or clusters, how far apart their mean features are, in deviations, and how far by chance alone."""

    one: str
    other: str
    distance: float
    by_chance: float

    @property
    def differs(self) -> bool:
        """Whether they differ by more than chance."""
        return self.distance > _SURE * self.by_chance

    @property
    def excess(self) -> float:
        """The square of the distance without what chance adds to it."""
        return self.distance**2 - self.by_chance**2


def apart(one: str, other: str, sums: Mapping[str, SiteSums]) -> Apart:
    """How far apart the features of two sites lie: the root mean square over features of the difference of means.

    Means are taken class by class where classes are known, so that a site with more of one class is not another for
    that alone; a class counts by its cases at both. Each feature is in units of its deviation within classes, the mean
    of both sites'; features that do not vary are left out. Of the same kind, it is about sqrt(1/n + 1/m). Sites that
    have no class in common are compared by all cases; without cases nothing is apart.
    """
    mine, theirs = _means(sums[one]), _means(sums[other])
    if not mine.keys() & theirs.keys():
        mine, theirs = (_means(SiteSums(sums[name].gram)) for name in (one, other))
    shared = sorted(mine.keys() & theirs.keys())
    spread = np.sqrt((_variance(sums[one]) + _variance(sums[other])) / 2)
    varies = spread > _TINY
    if not varies.any() or not shared:
        return Apart(one, other, 0.0, 0.0)
    weights = np.array([1 / (1 / mine[c][1] + 1 / theirs[c][1]) for c in shared])
    weights /= weights.sum()
    squares = [np.mean(((mine[c][0] - theirs[c][0])[varies] / spread[varies]) ** 2) for c in shared]
    chance = [1 / mine[c][1] + 1 / theirs[c][1] for c in shared]
    return Apart(one, other, float(np.sqrt(weights @ squares)), float(np.sqrt(weights @ chance)))


def pairs(sums: Mapping[str, SiteSums]) -> list[Apart]:
    """All pairs of sites."""
    return [apart(one, other, sums) for one, other in combinations(sorted(sums), 2)]


def partitions(sums: Mapping[str, SiteSums]) -> list[tuple[tuple[tuple[str, ...], ...], Apart | None]]:
    """From each site by itself to all as one: each time the two clusters that are closest are put together.

    With each partition the two clusters of it that are closest, which are together in the next; None at the end.
    """
    clusters: dict[tuple[str, ...], SiteSums] = {(site,): own for site, own in sorted(sums.items())}
    found: list[tuple[tuple[tuple[str, ...], ...], Apart | None]] = []
    while len(clusters) > 1:
        names = {"+".join(sites): sites for sites in clusters}
        closest = min(pairs({name: clusters[sites] for name, sites in names.items()}), key=lambda one: one.excess)
        found.append((tuple(sorted(clusters)), closest))
        both = names[closest.one], names[closest.other]
        joined = clusters.pop(both[0]) + clusters.pop(both[1])
        clusters[tuple(sorted((*both[0], *both[1])))] = joined
    return [*found, (tuple(sorted(clusters)), None)]


def clustered(sums: Mapping[str, SiteSums], count: int | None = None) -> tuple[tuple[str, ...], ...]:
    """The sites in so many clusters, or in as few as there may be without two in one that are worth a model each.

    Two are, if they differ by more than chance, and by half a deviation at least.
    """
    for partition, closest in partitions(sums):
        if closest is None or len(partition) == count:
            return partition
        if count is None and closest.differs and closest.distance >= _LARGE:
            return partition
    raise AssertionError  # the last partition has no closest pair


def _means(sums: SiteSums) -> dict[int, tuple[np.ndarray, float]]:
    """By class the mean features (d,), and the cases, of classes with enough."""
    columns = sums.gram[:, -1:] if sums.cross is None else sums.cross
    return {
        c: (columns[:-1, c] / columns[-1, c], float(columns[-1, c]))
        for c in range(columns.shape[1])
        if columns[-1, c] >= _FEWEST
    }


def _variance(sums: SiteSums) -> np.ndarray:
    """Each feature's variance within classes, (d,)."""
    squares = np.diag(sums.gram)[:-1].copy()
    columns = sums.gram[:, -1:] if sums.cross is None else sums.cross
    for c in range(columns.shape[1]):
        if columns[-1, c] > 0:
            squares -= columns[:-1, c] ** 2 / columns[-1, c]
    return np.maximum(squares / max(float(sums.gram[-1, -1]), 1.0), 0.0)
