"""Metric sums of one exchange as values: per site, pooled, macro mean and worst site."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from fedgraft.common.metrics.conformal import covered, parts_of, thresholds
from fedgraft.common.metrics.intervals import Interval
from fedgraft.common.metrics.operating_point import OperatingPoint, chosen, counted
from fedgraft.common.metrics.over_sites import worst
from fedgraft.common.metrics.plugged import metric_named, values_of
from fedgraft.common.metrics.shown import shown
from fedgraft.common.metrics.subgroups import by_subgroup, named
from fedgraft.common.metrics.sums.task_metrics import (
    TaskSums,
    add,
    plain,
)
from fedgraft.common.metrics.support import equal_mean, intervals, precise_mean, support
from fedgraft.common.metrics.table import TABLE, Metric, headlines
from fedgraft.common.secure_aggregation.summing import Pooled
from fedgraft.common.study.operating import OperatingRule
from fedgraft.common.study.study import Study
from fedgraft.common.study.subgroups import Subgroup

Points = Mapping[str, list[OperatingPoint | None]]
"""By task, and there by label (or of the second of two classes)."""


class Scores:
    """Sums by site and task; values are made from them only at the end. Secure aggregation has only `pooled`."""

    def __init__(
        self,
        study: Study,
        sums: Mapping[str, Mapping[str, TaskSums]],
        pooled: Mapping[str, Pooled] | None = None,
    ) -> None:
        self._study, self._tasks = study, study.tasks_by_name
        self._shown = {task: shown(study, task) for task in self._tasks}
        self._floor = study.evaluate.floor
        self._sums = {site: sums[site] for site in sorted(sums)}
        self._secure = dict(pooled or {})

    def values(self) -> dict[str, Any]:
        """By task: `sites` (by name), `pooled` over all cases, `macro` mean over sites, `worst` site.

        The worst is that with the lowest AUROC or Dice coefficient, or the largest absolute error. Means and worst are
        over the sites with enough cases: `support` says how many each has, `intervals` how far its figures may be off,
        `macro_intervals` the same of the mean in which each site counts alike, and `macro_by_precision` has the mean in
        which each counts one over its squared standard error. `summary` is what a choice of a round rests on, and what
        is shown of one: the macro mean, or, if no site has enough cases, the figure of all pooled, if those are enough.
        """
        if not self._sums and not self._secure:
            return {}
        return {task: self._task_values(task) for task in self._tasks}

    def sums(self) -> dict[str, Any]:
        """By task the sums themselves as plain lists, per site and pooled, for curves in the report."""
        lists: dict[str, Any] = {}
        for task in self._tasks if self._sums or self._secure else []:
            sites = {site: plain(sums[task]) for site, sums in self._sums.items()}
            lists[task] = {"sites": sites, "pooled": plain(self._pooled(task))}
        return lists

    def operating_points(self, rule: OperatingRule | None) -> Points:
        """By task the points that the rule asks for on these sums, all sites together; None for too few to say."""
        if rule is None or (not self._sums and not self._secure):
            return {}
        found = {name: chosen(task, self._pooled(name), rule, self._floor) for name, task in self._tasks.items()}
        return {task: points for task, points in found.items() if points}

    def conformal(self, validation: Scores) -> dict[str, Any]:
        """By task and part of it (a label, or "" for all classes) and site the threshold, and what it gives there.

        Thresholds are of the `validation` cases of the same site; under masks, where no site is seen, one of all sites
        together stands under "". A site without one has None: too few cases, or its policy shows none exactly.
        """
        coverage = self._study.evaluate.conformal
        if coverage is None:
            return {}
        return {
            task: {name: self._sets(validation, task, at, coverage) for at, name in enumerate(names)}
            for task, asked in self._tasks.items()
            if (names := parts_of(asked))
        }

    def _sets(self, validation: Scores, task: str, part: int, coverage: float) -> dict[str, Any]:
        before, found = validation._places(task), dict[str, Any]()
        for site, sums in self._places(task).items():
            known = thresholds(self._tasks[task], before[site], coverage, pooled=not site) if site in before else None
            one = known and known[part]
            found[site] = one and {
                **one.model_dump(),
                "probability": one.probability,
                "test": covered(sums, part, one),
            }
        return found

    def _places(self, task: str) -> dict[str, TaskSums]:
        """By site its sums; under masks those of all, under ""."""
        if task in self._secure:
            return {"": self._secure[task].sums}
        return {site: own[task] for site, own in self._sums.items()}

    def at(self, points: Points) -> dict[str, Any]:
        """By task the points, each with what it gives of these sums, over all cases and at each site."""
        if not self._sums and not self._secure:
            return {}
        return {task: [self._at(task, row, one) for row, one in enumerate(own) if one] for task, own in points.items()}

    def _at(self, task: str, row: int, point: OperatingPoint) -> dict[str, Any]:
        sums = {} if task in self._secure else {site: own[task] for site, own in self._sums.items()}
        known = {site: counted(own, row, point) for site, own in sums.items()}
        pooled = counted(self._pooled(task), row, point)
        return point.model_dump() | {
            "probability": point.probability,
            "pooled": pooled and pooled.plain(),
            "sites": {site: None if one is None else one.plain() for site, one in known.items()},
        }

    def subgroups(self) -> dict[str, Any]:
        """By task and attribute what `by_subgroup` makes of all cases together (`pooled`) and of each site."""
        asked = self._study.evaluate.subgroups
        return {task: {one.name: self._subgroup(task, one) for one in asked} for task in self._tasks if asked}

    def _subgroup(self, task: str, asked: Subgroup) -> dict[str, Any]:
        names = {named(task, asked.name, at): group for at, group in enumerate(asked.groups)}
        sites = {s: {names[key]: own[key] for key in names if key in own} for s, own in self._sums.items()}
        pooled = {names[key]: self._secure[key].sums for key in names if key in self._secure}
        for own in sites.values():
            pooled |= {group: add(pooled[group], sums) if group in pooled else sums for group, sums in own.items()}
        told = (*self._shown[task].names, *headlines(self._tasks[task]))
        metric = next(TABLE[name] for name in told if name in TABLE)  # groups have no sums of plug-ins' metrics
        return {
            "asked": list(asked.groups),
            "pooled": by_subgroup(metric, pooled, self._floor),
            "sites": {site: by_subgroup(metric, own, self._floor) for site, own in sites.items() if own},
        }

    def macro(self) -> dict[str, float | None]:
        """By task the `summary` of the metric that is shown first, for a progress line."""
        return {task: values["summary"][self._shown[task].first.name] for task, values in self.values().items()}

    def headline_metrics(self) -> dict[str, str]:
        """By task the name of the metric in `macro`."""
        return {task: own.first.name for task, own in self._shown.items()}

    def goodness(self, metric: str | None) -> float | None:
        """The `summary` of one metric, or of each task's headline, the mean over the tasks that have it.

        Larger is better, whichever way the metric goes. None if no task has it.
        """
        found = []
        for task, values in self.values().items():
            asked = self._shown[task].first if metric is None else metric_named(metric)
            if (value := values["summary"].get(asked.name)) is not None:
                found.append(asked.goodness(float(value)))
        return sum(found) / len(found) if found else None

    def _pooled(self, task: str) -> TaskSums:
        if task in self._secure:
            return self._secure[task].sums
        return reduce(add, (sums[task] for sums in self._sums.values()))

    def _task_values(self, task: str) -> dict[str, Any]:
        pooled, told = self._pooled(task), self._shown[task]
        sums = {} if task in self._secure else {site: own[task] for site, own in self._sums.items()}
        supports = {site: support(own).plain(self._floor) for site, own in sums.items()}
        found = {site: intervals(own) for site, own in sums.items()}
        sites = {site: values_of(own) for site, own in sums.items()}
        enough = {site: values for site, values in sites.items() if supports[site]["enough"]}
        lowest = worst(enough, told.first)
        means = {metric.name: _means(metric, enough, found) for metric in told.metrics}
        macro = {metric: None if equal is None else equal["value"] for metric, (equal, _) in means.items()}
        macro = dict(self._secure[task].macro) if task in self._secure else macro
        of_all, rests_on = values_of(pooled), support(pooled).plain(self._floor)
        return {
            "sites": sites,
            "pooled": of_all,
            "macro": macro,
            "summary": {
                metric: of_all.get(metric) if value is None and rests_on["enough"] else value
                for metric, value in macro.items()
            },
            "worst": None if lowest is None else {"site": lowest[0], told.first.name: lowest[1]},
            "shown": list(told.names),
            "facts": {metric.name: metric.plain() for metric in told.metrics if metric.name not in TABLE},
            "floor": self._floor,
            "support": {"sites": supports, "pooled": rests_on},
            "intervals": {"sites": found, "pooled": intervals(pooled)},
            "macro_intervals": {metric: equal for metric, (equal, _) in means.items()},
            "macro_by_precision": {metric: precise for metric, (_, precise) in means.items()},
        }


Mean = dict[str, Any] | None


def _means(
    metric: Metric, sites: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Interval]]
) -> tuple[Mean, Mean]:
    """The mean of one metric over the sites that have it, each counting alike and by precision."""
    known = {site: float(own[metric.name]) for site, own in sites.items() if own.get(metric.name) is not None}
    if not known:
        return None, None
    own = {site: found[site][metric.name] for site in known if metric.name in found[site]}
    return _possible(metric, equal_mean(known, own)), _possible(metric, precise_mean(known, own))


def _possible(metric: Metric, mean: Mean) -> Mean:
    """The mean with its interval cut off where the metric ends: no share is above 1, no error below 0."""
    if mean is None or mean["low"] is None:
        return mean
    return mean | {"low": metric.within(mean["low"]), "high": metric.within(mean["high"])}
