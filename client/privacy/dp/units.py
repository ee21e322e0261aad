"""Whom a guarantee speaks of, a patient or an image, and who of them comes into a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.client.privacy.dp import secret
from fedgraft.client.training.device.alike import Sizes, fitting, room
from fedgraft.client.training.model.loader import Batch

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Cases to work on at once: their positions in the cohort, and for each the number of its unit, below `units`.

    `single` says that no unit has two cases here, where that is known before anybody looks; `bound` how many a unit may
    have, whoever was drawn: what is worked out in one of two ways must not depend on who else is here. `step` is how
    many units are in the step of which these are a part, if not all.
    """

    indices: Tensor
    unit: Tensor
    units: int
    single: bool = False
    bound: int | None = None
    step: int | None = None

    @property
    def of(self) -> int:
        """How many units are in the step that these are a part of."""
        return self.units if self.step is None else self.step

    @cached_property
    def alone(self) -> bool:
        """Whether every unit (patient or image) has at most one case here."""
        return self.single or bool((self.unit[1:] > self.unit[:-1]).all())

    @cached_property
    def nth(self) -> Tensor:
        """Of each case, how many of its unit come before it; a unit's cases follow each other."""
        if self.alone:
            return torch.zeros_like(self.unit)
        return torch.arange(len(self.unit)) - torch.searchsorted(self.unit, self.unit)

    @cached_property
    def most(self) -> int:
        """How many cases a unit has at most."""
        return int(self.nth.max()) + 1 if len(self.unit) else 1

    @property
    def may_have(self) -> int:
        """How many cases a unit may have at most; as many as one has, where no bound is known."""
        return self.most if self.bound is None else self.bound

    def weights(self, rows: int) -> Tensor:
        """What each case counts in its unit's mean, followed by zeros, (rows,)."""
        weights = torch.zeros(rows)
        share = 1.0 if self.alone else (1 / torch.bincount(self.unit, minlength=self.units).clamp(min=1))[self.unit]
        weights[: len(self.unit)] = share
        return weights

    def by_unit(self, by_case: Tensor) -> Tensor:
        """The sums over each unit's cases of what is given case by case, (units, ...)."""
        if self.alone and len(by_case) == self.units:
            return by_case
        empty = by_case.new_zeros((self.units, *by_case.shape[1:]))
        return empty.index_add_(0, self.unit.to(by_case.device), by_case)

    def chunks(self, sizes: Sizes) -> Iterator[Rows]:
        """Whole units in groups that fit into such passes, or one unit that does not; none if there are no units."""
        if len(self.indices) <= room(sizes[-1]):
            if self.units:
                yield self
            return
        ends = torch.bincount(self.unit, minlength=self.units).cumsum(0).numpy()
        start = first = 0
        while start < self.units:
            size = room(fitting(len(self.indices) - first, sizes))
            stop = max(start + 1, int(np.searchsorted(ends, first + size, side="right")))
            last = int(ends[stop - 1])
            yield Rows(
                self.indices[first:last], self.unit[first:last] - start, stop - start, self.single, self.bound, self.of
            )
            start, first = stop, last


def only(batch: Batch, rows: Rows, places: Tensor) -> tuple[Batch, Rows]:
    """Some of a batch's cases; a unit of which none is left has an empty gradient.

    After those of `rows` the batch may go on with others, of which none is left unless all are.
    """
    if len(places) == len(rows.indices):
        return batch, rows
    here = places.cpu()
    return batch.at(places), Rows(rows.indices[here], rows.unit[here], rows.units, rows.single, rows.bound, rows.step)


def units_of(indices: Tensor, patients: Sequence[str], unit: str) -> list[list[int]]:
    """The cases `indices` by unit: all of a patient together, or each alone."""
    if unit == "image":
        return [[index] for index in indices.tolist()]
    cases: dict[str, list[int]] = {}
    for index in indices.tolist():
        cases.setdefault(patients[index], []).append(index)
    return list(cases.values())


def draw_units(count: int, sample_rate: float) -> Places:
    """A Poisson sample: each of `count` units is in it with probability `sample_rate`, whatever the others do."""
    return (secret.uniform(count) < sample_rate).nonzero()[0]


class Lots:
    """Makes the rows of a step from the units that were drawn for it."""

    def __init__(self, units: Sequence[Sequence[int]], *, single: bool = False) -> None:
        """`single` says that units are images, whoever is there."""
        self._single = single
        self._cases: Places = np.array(list(chain.from_iterable(units)), dtype=np.int64)
        self._sizes: Places = np.array(list(map(len, units)), dtype=np.int64)
        self._starts: Places = np.cumsum(self._sizes) - self._sizes
        self._alone = bool((self._sizes == 1).all())

    def rows(self, drawn: Places | Sequence[int], augmentation_multiplicity: int, *, augmented: bool) -> Rows:
        """For each unit `drawn`, at most `augmentation_multiplicity` of its cases; `augmented` ones may recur."""
        chosen: Places = np.asarray(drawn, dtype=np.int64)
        single = augmentation_multiplicity == 1 or (self._alone and not augmented)
        if self._alone and single:
            places, unit = self._starts[chosen], np.arange(len(chosen))
        else:
            places, unit = self._some(chosen, augmentation_multiplicity, augmented=augmented)
        indices, units = torch.from_numpy(self._cases[places]), torch.from_numpy(unit)
        bound = 1 if self._single and not augmented else augmentation_multiplicity
        return Rows(indices, units, len(chosen), single, bound)

    def _some(self, chosen: Places, augmentation_multiplicity: int, *, augmented: bool) -> tuple[Places, Places]:
        """Places in `_cases`, and for each the number of its unit among those `chosen`."""
        sizes = self._sizes[chosen]
        every = np.repeat(np.arange(len(chosen)), sizes)
        shuffled = np.lexsort((secret.uniform(len(every)), every))
        own = np.cumsum(sizes) - sizes  # where each unit begins among `every`
        counts = (
            np.full_like(sizes, augmentation_multiplicity)
            if augmented
            else np.minimum(sizes, augmentation_multiplicity)
        )
        unit = np.repeat(np.arange(len(chosen)), counts)
        nth = np.arange(len(unit)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = shuffled[own[unit] + nth % sizes[unit]]
        return self._starts[chosen][unit] + (at - own[unit]), unit
