"""Whom a guarantee speaks of, a patient or an image, and who of them comes into a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.privacy import secret


@dataclass(frozen=True)
class Rows:
    """Cases to work on at once: their positions in the cohort, and for each the number of its unit, below `units`."""

    indices: Tensor
    unit: Tensor
    units: int


def units_of(indices: Tensor, patients: Sequence[str], unit: str) -> list[Tensor]:
    """The cases `indices` by unit: all of a patient together, or each alone."""
    if unit == "image":
        return [torch.tensor([index]) for index in indices.tolist()]
    cases: dict[str, list[int]] = {}
    for index in indices.tolist():
        cases.setdefault(patients[index], []).append(index)
    return [torch.tensor(own) for own in cases.values()]


def draw_units(count: int, sample: float) -> list[int]:
    """A Poisson sample: each of `count` units is in it with probability `sample`, whatever the others do."""
    return [int(at) for at in (secret.uniform(count) < sample).nonzero()[0]]


def draw_rows(units: Sequence[Tensor], views: int, *, augmented: bool) -> list[Tensor]:
    """For each unit, at most `views` of its cases at random; `augmented` ones may come again to make up the number."""
    rows = []
    for cases in units:
        order = cases[torch.from_numpy(secret.uniform(len(cases)).argsort())]
        rows.append(order.repeat(-(-views // len(cases)))[:views] if augmented else order[:views])
    return rows


def chunks(rows: Sequence[Tensor], size: int) -> Iterator[Rows]:
    """Whole units in groups of at most `size` cases, or one unit with more."""
    start = 0
    while start < len(rows):
        stop, cases = start + 1, len(rows[start])
        while stop < len(rows) and cases + len(rows[stop]) <= size:
            cases += len(rows[stop])
            stop += 1
        lengths = torch.tensor([len(own) for own in rows[start:stop]])
        unit = torch.repeat_interleave(torch.arange(stop - start), lengths)
        yield Rows(torch.cat(list(rows[start:stop])), unit, stop - start)
        start = stop
