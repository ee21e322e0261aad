"""How a finished model is fitted to a new site's few labelled cases. A value, for the command and for comparisons."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedgraft.common.base.value import Value
from fedgraft.common.study.stages.aggregates import (
    ClosedForm,
    Discriminant,
    NearestMean,
    Ridge,
)

How = Literal["none", "tune", "ridge", "ncm", "lda"]


class Fit(Value):
    """`none` leaves the model as it is; `tune` takes a few gradient steps on all entries, norm statistics among them.

    The others solve the heads anew on frozen features, from the sums of the site's cases and those of all sites that
    came with the model, as if those were `common` cases: of prototypes (`ncm`) and discriminants this is the posterior
    mean under a prior of so many cases. Without such sums, or with `common: 0`, from the site's own alone.
    """

    how: How = "tune"
    """What is done to the model."""
    steps: Annotated[int, Field(ge=1)] = 20
    """Steps of `tune`."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of `tune`."""
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Cases in a step of `tune`."""
    common: Annotated[float, Field(ge=0)] = 20.0

    @property
    def aggregate(self) -> ClosedForm | None:
        """What solves the heads; None if nothing does."""
        solvers: dict[str, ClosedForm] = {"ridge": Ridge(), "ncm": NearestMean(), "lda": Discriminant()}
        return solvers.get(self.how)
