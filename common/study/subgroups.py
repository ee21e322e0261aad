"""Subgroups that figures are asked for: an attribute of each case, and the groups that its values make. A value."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedgraft.common.base.value import Value, unless

MOST_ATTRIBUTES, MOST_GROUPS = 4, 8
"""All sums of the groups of all attributes are looked at before any of them leaves a site."""

NO_GROUP = -1
"""The group of a case that is in none, or of which that is not known."""

TAGS = ("PatientSex", "PatientAge", "Manufacturer")
"""What of a DICOM file can say to which group its case belongs."""
Tag = Literal["PatientSex", "PatientAge", "Manufacturer"]

Groups = tuple[str, ...] | tuple[float, ...]
"""The values of an attribute, or the ends of its bands."""


class Subgroup(Value):
    """One attribute. No case is in two of its groups, and cases of other or unknown values are in none."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    """What the attribute is called, here, in the policies of the sites and in their tables, unless a site says
    otherwise. A study names no column: by it a coordinator could look at another one than the policy means."""
    values: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=64)], ...],
        Field(max_length=MOST_GROUPS, exclude_if=unless(())),
    ] = ()
    """The values that make a group each, as `[female, male]`."""
    bands: Annotated[tuple[float, ...], Field(max_length=MOST_GROUPS + 1, exclude_if=unless(()))] = ()
    """The ends of bands of a number, as `[0, 40, 65, 120]`: from each end to below the next."""

    @field_validator("values", mode="before")
    @classmethod
    def _words(cls, values: Any) -> Any:
        """Numbers are words here, as a person who writes `values: [0, 1]` means them."""
        return [_word(one) for one in values] if isinstance(values, list | tuple) else values

    @model_validator(mode="after")
    def _makes_groups(self) -> Subgroup:
        if bool(self.values) == bool(self.bands):
            raise ValueError("give either values or bands, as `values: [female, male]` or `bands: [0, 40, 65, 120]`")
        if len(set(self.values)) < len(self.values):
            raise ValueError("values must differ")
        ends = self.bands
        if ends and (len(ends) < 2 or not all(map(math.isfinite, ends)) or list(ends) != sorted(set(ends))):
            raise ValueError("bands are two or more numbers, each larger than the one before")
        return self

    @classmethod
    def of(cls, name: str, listed: Groups) -> Subgroup:
        """The attribute of this name with groups as a site's policy lists them: words are values, numbers bands."""
        words = tuple(one for one in listed if isinstance(one, str))
        return cls(name=name, values=words) if words else cls(name=name, bands=tuple(map(float, listed)))

    @property
    def groups(self) -> tuple[str, ...]:
        """What people read: the values, or "40 to under 65"."""
        return self.values or tuple(f"{low:g} to under {high:g}" for low, high in pairwise(self.bands))

    def is_made_by(self, listed: Groups | None) -> bool:
        """Whether a site's policy lists these groups: the same values as words, or the same ends, in the same order."""
        return listed is not None and listed == (self.values or self.bands)

    def band(self, number: float) -> int:
        """The position of the band that a number lies in, or -1."""
        found = (at for at, (low, high) in enumerate(pairwise(self.bands)) if low <= number < high)
        return next(found, NO_GROUP)


def _word(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else value
