"""Metric sums of one exchange as values: per site, pooled, macro mean and worst site."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from fedgraft.common.metrics.metrics import macro_mean, worst
from fedgraft.common.metrics.task_metrics import (
    TaskSums,
    add,
    headline_metrics,
    plain,
)
from fedgraft.common.secure_aggregation.summing import Pooled
from fedgraft.common.study.study import Study


class Scores:
    """Sums by site and task; values are made from them only at the end. Secure aggregation has only `pooled`."""

    def __init__(
        self,
        study: Study,
        sums: Mapping[str, Mapping[str, TaskSums]],
        pooled: Mapping[str, Pooled] | None = None,
    ) -> None:
        self._tasks = study.tasks_by_name
        self._sums = {site: sums[site] for site in sorted(sums)}
        self._secure = dict(pooled or {})

    def values(self) -> dict[str, Any]:
        """By task: `sites` (by name), `pooled` over all cases, `macro` mean over sites, `worst` site.

        The worst is that with the lowest AUROC or Dice coefficient, or the largest absolute error.
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

    def macro(self) -> dict[str, float | None]:
        """By task the macro mean of the metric that is shown first, for a progress line."""
        return {
            task: values["macro"][headline_metrics(self._tasks[task]).first] for task, values in self.values().items()
        }

    def headline_metrics(self) -> dict[str, str]:
        """By task the name of the metric in `macro`."""
        return {task: headline_metrics(asked).first for task, asked in self._tasks.items()}

    def _pooled(self, task: str) -> TaskSums:
        if task in self._secure:
            return self._secure[task].sums
        return reduce(add, (sums[task] for sums in self._sums.values()))

    def _task_values(self, task: str) -> dict[str, Any]:
        if task in self._secure:
            macro = dict(self._secure[task].macro)
            return {"sites": {}, "pooled": self._pooled(task).values(), "macro": macro, "worst": None}
        sites = {site: sums[task].values() for site, sums in self._sums.items()}
        told = headline_metrics(self._tasks[task])
        lowest = worst(sites, told.first, largest=told.lower_is_better)
        return {
            "sites": sites,
            "pooled": self._pooled(task).values(),
            "macro": {metric: macro_mean(list(sites.values()), metric) for metric in told.metrics},
            "worst": None if lowest is None else {"site": lowest[0], told.first: lowest[1]},
        }
