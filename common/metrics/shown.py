"""What of a study's metrics is shown first, by task: its headline, what stands beside it, what it asks for besides."""

from __future__ import annotations

from dataclasses import dataclass

from fedgraft.common.metrics.plugged import metric_named
from fedgraft.common.metrics.table import Metric, headlines
from fedgraft.common.study.study import Study


@dataclass(frozen=True)
class Shown:
    """Metrics of a task by macro mean over sites; the first, the headline, also by worst site."""

    metrics: tuple[Metric, ...]

    @property
    def first(self) -> Metric:
        """The metric that sites are ranked by."""
        return self.metrics[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics' names, the headline first."""
        return tuple(metric.name for metric in self.metrics)


def shown(study: Study, task: str) -> Shown:
    """What is shown first of a task. InputError for a metric that nobody has."""
    asked, usual = study.tasks_by_name[task], headlines(study.tasks_by_name[task])
    headline = study.evaluate.headline.get(task, usual[0])
    stops = [stage.early_stopping.metric for stage in study.plan if stage.early_stopping is not None]
    more = [metric_named(name) for name in (*study.evaluate.metrics, *(name for name in stops if name is not None))]
    fitting = [metric.name for metric in more if asked.kind in metric.tasks]
    return Shown(tuple(metric_named(name) for name in dict.fromkeys((headline, *usual, *fitting))))
