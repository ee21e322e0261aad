"""Metric sums of one exchange as values: per site, pooled, macro mean and worst site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any

from common.metrics import SHOWN, ClassificationSums, macro_mean, worst
from common.study import Study
from common.summing import Pooled


class Scores:
    """Sums by site and task; values are made from them only at the end. A masked study has only what is `pooled`."""

    def __init__(
        self,
        study: Study,
        sums: Mapping[str, Mapping[str, ClassificationSums]],
        pooled: Mapping[str, Pooled] | None = None,
    ) -> None:
        self._tasks = [task.name for task in study.tasks]
        self._sums = {site: sums[site] for site in sorted(sums)}
        self._masked = dict(pooled or {})

    def values(self) -> dict[str, Any]:
        """By task: `sites` (by name), `pooled` over all cases, `macro` mean over sites, `worst` site by AUROC."""
        if not self._sums and not self._masked:
            return {}
        return {task: self._task_values(task) for task in self._tasks}

    def sums(self) -> dict[str, Any]:
        """By task the sums themselves as plain lists, per site and pooled, for curves in the report."""
        plain: dict[str, Any] = {}
        for task in self._tasks if self._sums or self._masked else []:
            sites = {site: _plain(sums[task]) for site, sums in self._sums.items()}
            plain[task] = {"sites": sites, "pooled": _plain(self._pooled(task))}
        return plain

    def macro(self) -> dict[str, float | None]:
        """Macro AUROC by task, for a progress line."""
        return {task: values["macro"]["auroc"] for task, values in self.values().items()}

    def _pooled(self, task: str) -> ClassificationSums:
        if task in self._masked:
            return self._masked[task].sums
        return reduce(add, (sums[task] for sums in self._sums.values()))

    def _task_values(self, task: str) -> dict[str, Any]:
        if task in self._masked:
            macro = dict(self._masked[task].macro)
            return {"sites": {}, "pooled": self._pooled(task).values(), "macro": macro, "worst": None}
        sites = {site: sums[task].values() for site, sums in self._sums.items()}
        lowest = worst(sites, "auroc")
        return {
            "sites": sites,
            "pooled": self._pooled(task).values(),
            "macro": {metric: macro_mean(list(sites.values()), metric) for metric in SHOWN},
            "worst": None if lowest is None else {"site": lowest[0], "auroc": lowest[1]},
        }


def _plain(sums: ClassificationSums) -> dict[str, Any]:
    """As JSON knows it, which has no NaN."""
    lists = {key: array.tolist() for key, array in sums.arrays().items()}
    return lists | {key: [None] for key in ("loss", "brier") if math.isnan(lists[key][0])}
