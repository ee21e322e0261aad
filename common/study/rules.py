"""What counts in a run: when a round does, with how few sites, and when and on what the model is measured."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedgraft.common.base.value import Value, unless
from fedgraft.common.study.operating import OperatingRule
from fedgraft.common.study.subgroups import MOST_ATTRIBUTES, Subgroup

_LARGEST_CHANGE = 10.0
_QUORUM, _FEWEST = 0.5, 2
"""What must answer in a study that does not say so: this share of the sites, and of several at least so many."""

RELEASE_WAIT_H = 72.0
"""So many hours a study waits for people who release what is held, if it does not say: over a weekend."""

_NAME = r"^[a-z][a-z0-9_]{0,31}$"


class RoundRules(Value):
    """When a round counts, and with how few sites a run is still a success.

    `quorum` is the share of the asked sites that must answer well, at least `min_sites`. A study that gives neither
    goes on with half of them, of several with 2 at least, but then a run in which any was missing has not completed.

    `deadline_s` bounds a site's answer to one instruction, in seconds; no deadline if absent. `max_change` bounds the
    norm of a site's change of the model relative to the model's own norm; 10 if absent. In a study with secure
    aggregation, where nobody sees a site's change, it cannot be given, and the bound of 10 holds for the aggregated
    change.

    `release_wait_h` is how many hours the run waits for the people of sites whose policy says `release: hold`, in the
    exchange that such a site holds. With 0 it waits for nobody, and these sites take no part.
    """

    quorum: Annotated[float, Field(gt=0, le=1)] | None = None
    min_sites: Annotated[int, Field(ge=1)] | None = None
    deadline_s: Annotated[float, Field(gt=0)] | None = None
    max_change: Annotated[float, Field(gt=0)] | None = None
    release_wait_h: Annotated[float, Field(ge=0, le=24 * 365, exclude_if=unless(RELEASE_WAIT_H))] = RELEASE_WAIT_H

    def needed(self, asked: int) -> int:
        """How many of so many sites must answer well for a round to count."""
        least = min(_FEWEST, asked) if self.min_sites is None else self.min_sites
        return max(least, math.ceil((self.quorum or _QUORUM) * asked - 1e-9))

    @property
    def says_how_few(self) -> bool:
        """Whether the study says with how few sites it is content."""
        return self.quorum is not None or self.min_sites is not None

    @property
    def largest_change(self) -> float:
        """`max_change`, or 10 if the study does not give it."""
        return _LARGEST_CHANGE if self.max_change is None else self.max_change


class Evaluation(Value):
    """Sites evaluate what they receive on `split`, every so many exchanges; the last exchange uses the test split.

    Observers, sites that hold public data and take no part in training, use all their cases every time.
    """

    every: Annotated[int, Field(ge=0)] = 1
    """0 = sites only at the end."""
    split: Literal["val", "test"] = "val"
    floor: Annotated[int, Field(ge=1, exclude_if=unless(10))] = 10
    """Cases of either class that a site needs for its figures to count in means over sites, in the choice of a round
    and in early stopping; of more classes, as many as make their mean as sure. Below it they are too few to say."""
    operating_point: Annotated[OperatingRule | None, Field(exclude_if=unless(None))] = None
    """With a rule, sites evaluate the final model on their validation cases too, in one more exchange; from these the
    threshold of each task of two classes, and of each label, is chosen, which is then counted on the test cases."""
    metrics: Annotated[tuple[Annotated[str, Field(pattern=_NAME)], ...], Field(exclude_if=unless(()))] = ()
    """Metrics of plug-ins that are worked out as well, wherever a task is of their kind."""
    headline: Annotated[dict[str, str], Field(exclude_if=unless({}))] = Field(default={})
    """By task the metric that is shown first, ranks the sites and decides early stopping, if not the usual one."""
    subgroups: Annotated[tuple[Subgroup, ...], Field(max_length=MOST_ATTRIBUTES, exclude_if=unless(()))] = ()
    """Attributes by which figures of the test cases are given as well, group by group, as far as the sites' policies
    allow it: sex, bands of age, vendor."""

    conformal: Annotated[float | None, Field(gt=0.5, lt=1, exclude_if=unless(None))] = None
    """A share of cases, as .9: for each site a threshold is chosen on its validation cases so that the classes at or
    above it have the true one among them in this share of new cases; what they give of the test cases is counted."""

    @property
    def chosen_on_val(self) -> bool:
        """Whether thresholds are chosen on validation cases at the end, in an exchange of their own."""
        return self.operating_point is not None or self.conformal is not None

    @field_validator("subgroups")
    @classmethod
    def _tells_them_apart(cls, subgroups: tuple[Subgroup, ...]) -> tuple[Subgroup, ...]:
        """Two sets of groups of one attribute would tell of the cases between their ends, by subtraction."""
        names = [one.name for one in subgroups]
        if twice := sorted({one for one in names if names.count(one) > 1}):
            raise ValueError(f"two subgroups of one name, {', '.join(twice)}, would tell of the cases between them")
        return subgroups
