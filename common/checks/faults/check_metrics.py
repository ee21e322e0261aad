"""Metrics that a study asks for: each is known, and for a task that the study has."""

from __future__ import annotations

from collections.abc import Iterator

from fedgraft.common.base.errors import InputError
from fedgraft.common.config.suggest import instead
from fedgraft.common.metrics.conformal import parts_of
from fedgraft.common.metrics.operating_point import names_of
from fedgraft.common.metrics.plugged import metric_named, plugged_metric
from fedgraft.common.metrics.shown import shown
from fedgraft.common.metrics.table import TABLE, Metric, title_with_unit
from fedgraft.common.plugins.registry import Kind, names
from fedgraft.common.study.study import Study


def check_metrics(study: Study) -> Iterator[str]:
    """Every reason why these metrics cannot be had, each with its key."""
    faults = [*_more(study), *_headline(study)]
    for at, stage in enumerate(study.plan):
        if stage.early_stopping is not None:
            where = f"plan.{at} ({stage.name}).early_stopping.metric"
            faults += _stops(study, where, stage.early_stopping.metric) if not faults else []
    yield from faults


def _more(study: Study) -> Iterator[str]:
    for at, name in enumerate(study.evaluate.metrics):
        key = f"evaluate.metrics.{at}"
        if name in TABLE:
            yield f"{key}: {name} is worked out anyway; leave it out"
        else:
            faults = list(_found(key, name, {task.kind for task in study.tasks}))
            yield from faults or _tried(key, name, study)


def _tried(key: str, name: str, study: Study) -> Iterator[str]:
    try:
        metric = plugged_metric(name)
        for task in study.tasks:
            if task.kind in metric.metric.tasks:
                metric.demand_works(task)
    except InputError as error:
        yield f"{key}: {error}"


def _headline(study: Study) -> Iterator[str]:
    for name, metric in study.evaluate.headline.items():
        key = f"evaluate.headline.{name}"
        if (task := study.tasks_by_name.get(name)) is None:
            yield f"{key}: there is no task {name!r}{instead(name, study.tasks_by_name)}"
        elif metric not in TABLE and metric not in study.evaluate.metrics:
            yield f"{key}: there is no metric {metric!r}{instead(metric, [*TABLE, *study.evaluate.metrics])}"
        else:
            yield from _found(key, metric, {task.kind})


def _stops(study: Study, key: str, metric: str | None) -> Iterator[str]:
    if metric is not None:
        if metric not in TABLE and metric not in study.evaluate.metrics:
            yield f"{key}: there is no metric {metric!r}{instead(metric, [*TABLE, *study.evaluate.metrics])}"
        else:
            faults = list(_found(key, metric, {task.kind for task in study.tasks}))
            yield from faults or _several_units(study, key, metric_named(metric))
        return
    firsts = {name: title_with_unit(shown(study, name).first, task) for name, task in study.tasks_by_name.items()}
    if len(set(firsts.values())) > 1:
        said = ", ".join(f"{task}: {first}" for task, first in firsts.items())
        yield f"{key}: the tasks have different headlines ({said}), of which there is no mean; name one metric"


def _several_units(study: Study, key: str, metric: Metric) -> Iterator[str]:
    """A metric of tasks that are counted in different units decides for the largest numbers."""
    titles = {task.name: title_with_unit(metric, task) for task in study.tasks if task.kind in metric.tasks}
    if len(set(titles.values())) > 1:
        said = ", ".join(f"{task}: {title}" for task, title in titles.items())
        yield f"{key}: is counted in different units ({said}), of which there is no mean; name another, such as r2"


def _found(key: str, name: str, kinds: set[str]) -> Iterator[str]:
    if name not in TABLE and name not in names(Kind.METRICS):
        yield f"{key}: there is no metric {name!r}{instead(name, [*TABLE, *names(Kind.METRICS)])}"
        return
    try:
        metric: Metric = metric_named(name)
    except InputError as error:
        yield f"{key}: {error}"
        return
    if kinds.isdisjoint(metric.tasks):
        yield f"{key}: {name} is for {' or '.join(metric.tasks)}, and here is {', '.join(sorted(kinds))}"


def check_thresholds(study: Study) -> Iterator[str]:
    """Every reason why a study's operating points or conformal sets cannot be had."""
    asked = {
        "operating_point": (study.evaluate.operating_point, "two classes", names_of),
        "conformal": (study.evaluate.conformal, "classes", parts_of),
    }
    for key, (rule, kinds, parts) in asked.items():
        if rule is None:
            continue
        if study.split.val == 0:
            yield f"evaluate.{key}: is chosen on validation cases, and split.val is 0; give val a share"
        if not any(parts(task) for task in study.tasks):
            yield f"evaluate.{key}: is for tasks of {kinds} or of labels, and there are none; leave it out"
