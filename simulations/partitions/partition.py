"""How a benchmark, or one table of several hospitals, becomes the sites of a simulation. Patients are dealt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, assert_never

import numpy as np
from pydantic import Field, field_validator

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.seeds import derive
from fedgraft.common.base.value import Value

Sites = Annotated[int, Field(ge=1, le=1000)]


class ByColumn(Value):
    """A site for every value of a column."""

    kind: Literal["column"]
    column: str
    """Of the table with the cases, or with their labels."""


class BySizes(Value):
    """Patients in random order, dealt out by shares."""

    kind: Literal["sizes"]
    shares: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    """One share for each site; they add up to 1."""

    @field_validator("shares")
    @classmethod
    def _add_up(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if abs(sum(value) - 1) > 1e-6:
            raise ValueError(f"the shares add up to {sum(value):g}, not 1")
        return value


class ByDirichlet(Value):
    """The patients of each class are shared out by a draw from a Dirichlet distribution (Hsu et al., 2019).

    arXiv:1909.06335. A small `alpha` gives sites few classes each, a large one makes them alike.
    """

    kind: Literal["dirichlet"]
    sites: Sites
    """How many there are."""
    alpha: Annotated[float, Field(gt=0)]
    """Of the distribution, for each site."""
    label: str | None = None
    """Column with the class; not needed where sub-folders or arrays have it."""


class ByShards(Value):
    """Patients in the order of their classes, cut into equal shards, some for each site (McMahan et al., 2017).

    arXiv:1602.05629.
    """

    kind: Literal["shards"]
    sites: Sites
    """How many there are."""
    per_site: Annotated[int, Field(ge=1, le=100)] = 2
    """Shards that a site gets."""
    label: str | None = None
    """Column with the class; not needed where sub-folders or arrays have it."""


class Partition(Value):
    """One cohort that several sites share; what each gets follows from the scenario's seed alone."""

    cohort: CohortSpec
    """All cases together."""
    by: Annotated[ByColumn | BySizes | ByDirichlet | ByShards, Field(discriminator="kind")]
    """Who gets which."""


def deal(patients: Mapping[str, str], by: ByColumn | BySizes | ByDirichlet | ByShards, seed: int) -> dict[str, str]:
    """The site of every patient, from the label (or for a column the value) of each. InputError if a site stays empty.

    Depends on names, labels and seed, not on their order.
    """
    order = sorted(patients)
    draw = np.random.default_rng(derive(seed, "partition"))
    match by:
        case ByColumn():
            return dict(patients)
        case BySizes():
            draw.shuffle(order)
            return _filled(_cut(order, by.shares), len(by.shares))
        case ByDirichlet():
            found: dict[str, str] = {}
            for label in sorted(set(patients.values())):
                own = [patient for patient in order if patients[patient] == label]
                draw.shuffle(own)
                found |= _cut(own, draw.dirichlet([by.alpha] * by.sites).tolist())
            return _filled(found, by.sites)
        case ByShards():
            draw.shuffle(order)
            order.sort(key=lambda patient: patients[patient])
            count = by.sites * by.per_site
            shards = np.array_split(np.array(order, dtype=object), count)
            owners = draw.permutation(count) % by.sites
            pairs = zip(shards, owners, strict=True)
            return _filled({who: _name(int(owner)) for own, owner in pairs for who in own.tolist()}, by.sites)
        case _:
            assert_never(by)


def _cut(order: Sequence[str], shares: Sequence[float]) -> dict[str, str]:
    """Patients in this order to sites by shares, to the nearest whole patient."""
    ends = np.rint(np.cumsum(shares) / sum(shares) * len(order)).astype(int)
    return {patient: _name(int(np.searchsorted(ends, at, side="right"))) for at, patient in enumerate(order)}


def _name(number: int) -> str:
    return f"site_{number + 1}"


def _filled(found: dict[str, str], sites: int) -> dict[str, str]:
    if empty := [_name(number) for number in range(sites) if _name(number) not in set(found.values())]:
        raise InputError(
            f"partition: nobody is left for {', '.join(empty)}.",
            fix="Ask for fewer sites, a larger alpha, or another seed.",
        )
    return found
