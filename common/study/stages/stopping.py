"""How the rounds of a stage end: early, or with an average over them. Values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedgraft.common.base.value import Value


class EarlyStopping(Value):
    """Early stopping on the sites' validation: the coordinator decides, by the figures it aggregates anyway.

    One model is aggregated, so one decision ends the stage, and everybody takes the same: a site that stopped by itself
    would leave the mean. The stage ends once `metric`, the mean over sites with enough cases (or, if none has, over all
    cases) and then over tasks, has not become better by more than `least` in `patience` evaluations, and goes back to
    the best of the models that were evaluated. The round in which that is seen was trained in vain, since sites
    evaluate and train in one exchange. Sites whose policy keeps metrics to itself have no say; without any figure the
    stage runs to its end.
    """

    patience: Annotated[int, Field(ge=1)] = 3
    least: Annotated[float, Field(ge=0)] = 0.0
    metric: str | None = None
    """The metric that decides; the headline of the tasks if absent, which must then be one for all of them."""


class WeightAveraging(Value):
    """The stage ends with an average of the aggregated models of its rounds; the rounds themselves go on without it.

    `swa` is the plain mean over the last share `over` of the rounds (Izmailov et al. 2018), `ema` an exponential one
    that keeps `decay` of itself in each round. It is made from what was aggregated, so it costs no privacy. Running
    statistics are averaged as well; a stage that recalibrates them can follow.
    """

    rule: Literal["swa", "ema"] = "swa"
    """Which average."""
    over: Annotated[float, Field(gt=0, le=1)] = 0.5
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.8
