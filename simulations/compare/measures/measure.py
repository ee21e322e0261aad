"""The one metric of one task by which a question's arms are compared, and what cannot be compared by."""

from __future__ import annotations

from dataclasses import dataclass

from fedgraft.common.base.errors import InputError
from fedgraft.common.config.suggest import instead
from fedgraft.common.metrics.plugged import metric_named
from fedgraft.common.metrics.shown import shown
from fedgraft.common.metrics.table import TABLE, Metric, title_with_unit
from fedgraft.common.plugins.registry import Kind, names
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask, Regression
from fedgraft.simulations.compare.measures.answers import Answers
from fedgraft.simulations.compare.measures.shares import Floats
from fedgraft.simulations.compare.measures.under_weights import own_metrics, under_weights, value_of

RANKED = ("auroc", "average_precision")
"""Made of how the scores of one model rank the cases: those of several models make none."""

_MARGIN, _OF_STD, _MM = 0.02, 0.05, 1.0
_NOT: dict[str, str] = {
    "bias": "is best near 0, so that of two arms neither more nor less of it is better; use mae",
    "ppv": "is that of a threshold, which each model chooses for itself; use auroc or average_precision",
    "npv": "is that of a threshold, which each model chooses for itself; use auroc or average_precision",
}
"""Metrics of the table that no difference of arms can be told by, and why."""


@dataclass(frozen=True)
class Measure:
    """A task, its metric, and the difference that would not matter, in the metric's unit."""

    task: AnyTask
    metric: Metric
    margin: float

    @property
    def title(self) -> str:
        """The metric as people read it, with its unit: "MAE (mm)"."""
        return title_with_unit(self.metric, self.task)

    @property
    def lower_is_better(self) -> bool:
        """Whether less of it is better, as of errors."""
        return self.metric.better == "lower"

    @property
    def sign(self) -> float:
        """1.0 where more is better, -1.0 where less is."""
        return self.metric.goodness(1.0)

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """Every metric that is written down of the task; a plug-in's if it is the one that decides."""
        return tuple(dict.fromkeys((*own_metrics(self.task), self.metric.name)))

    def of(self, answers: Answers, weights: Floats) -> Floats:
        """The metric for each row of case weights, (rows,); NaN where it is undefined."""
        return under_weights(self.metric.name, self.task, answers, weights)

    def value(self, answers: Answers) -> float | None:
        """The same with each case once; None where it is undefined."""
        return value_of(self.metric.name, self.task, answers)


def metric_faults(name: str) -> list[str]:
    """Why no question can be decided by this metric, whatever the task; nothing if some can."""
    if name in _NOT:
        return [f"metric: {name} {_NOT[name]}"]
    if name in TABLE:
        return []
    if name not in (known := names(Kind.METRICS)):
        comparable = [one for one in TABLE if one not in _NOT]
        return [f"metric: there is no {name!r} to compare by{instead(name, [*comparable, *known])}"]
    try:
        found = metric_named(name)
    except InputError as error:
        return [f"metric: {error}"]
    return [f"metric: {name} {_NOT['bias']}"] if found.better == "near_0" else []


def measure(study: Study, task: str | None, metric: str | None, margin: float | None) -> Measure:
    """What decides: the study's first task and that task's headline, if no other is named, and a margin that fits it.

    InputError for a task that the study does not ask, and for a metric that is not of its kind or cannot decide.
    """
    name = task or study.tasks[0].name
    asked = study.tasks_by_name.get(name)
    if asked is None:
        raise InputError(f"there is no task {name!r}{instead(name, study.tasks_by_name)}", fix="See `tasks`.")
    found = metric_named(metric) if metric is not None else shown(study, name).first
    if asked.kind not in found.tasks:
        fitting = ", ".join(own_metrics(asked))
        raise InputError(
            f"metric: {found.name} is for {' and '.join(found.tasks)}, and task {name} is {asked.kind}",
            fix=f"Leave it out for the task's headline, or use one of {fitting}.",
        )
    if found.name in _NOT or found.better == "near_0":
        raise InputError(
            f"metric: {found.name} {_NOT.get(found.name, _NOT['bias'])}", fix="Name another as the question's metric."
        )
    return Measure(asked, found, _margin(asked, found) if margin is None else margin)


def _margin(task: AnyTask, metric: Metric) -> float:
    """Two hundredths of a share; of values a twentieth of the task's deviation; of distances a millimetre."""
    if metric.in_unit and isinstance(task, Regression):
        return _OF_STD * task.std
    return _MM if metric.name == "hd95_mm" else _MARGIN
