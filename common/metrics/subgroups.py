"""Figures by subgroup: what their sums are called on the way, which group is worst, and how far apart groups are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedgraft.common.metrics.intervals import Interval, Z
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.metrics.support import intervals, support
from fedgraft.common.metrics.table import Metric
from fedgraft.common.study.study import Study

_LEVEL = 0.05


def named(task: str, attribute: str, group: int) -> str:
    """What the sums of one group travel as, beside those of the task itself: no task has an @ in its name."""
    return f"{task}@{attribute}.{group}"


def names_of(study: Study) -> dict[str, str]:
    """By such a name the task that it is of, for all groups that a study asks for."""
    return {
        named(task, one.name, at): task
        for task in study.tasks_by_name
        for one in study.evaluate.subgroups
        for at in range(len(one.groups))
    }


def by_subgroup(metric: Metric, groups: Mapping[str, TaskSums], floor: int) -> dict[str, Any]:
    """What the sums of an attribute's groups say: by group values, support and intervals, and the gap between them.

    Only groups with enough cases (`floor`, as for sites) are compared. Groups of no cases, as masked sums have them of
    what no site shows, are left out.
    """
    figures = {
        group: {"values": sums.values(), "support": support(sums).plain(floor), "intervals": intervals(sums)}
        for group, sums in groups.items()
        if sums.n
    }
    told = {group: own for group, own in figures.items() if own["support"]["enough"]}
    values = {g: float(own["values"][metric.name]) for g, own in told.items() if own["values"][metric.name] is not None}
    sure = {group: told[group]["intervals"] for group in values}
    far = gap(metric, values, {group: own[metric.name] for group, own in sure.items() if metric.name in own})
    return {"groups": figures, "gap": far and far.plain()}


@dataclass(frozen=True)
class Gap:
    """How far the best and the worst group are apart in one metric: `high_group` has the larger value.

    The interval is so wide that in 95 of 100 runs it holds the true differences of all pairs of groups at once, since
    the pair was chosen for being far apart. It is None where a group has no interval.
    """

    metric: str
    worst: str
    high_group: str
    low_group: str
    value: float
    interval: Interval | None

    @property
    def decided(self) -> bool:
        """Whether the groups are not alike: chance alone would hardly put them so far apart."""
        return self.interval is not None and self.interval[0] > 0

    def plain(self) -> dict[str, Any]:
        """As a run's record has it."""
        low, high = self.interval or (None, None)
        return {
            "metric": self.metric,
            "worst": self.worst,
            "between": [self.high_group, self.low_group],
            "value": self.value,
            "low": low,
            "high": high,
            "decided": self.decided,
        }


def gap(metric: Metric, values: Mapping[str, float], intervals: Mapping[str, Interval]) -> Gap | None:
    """The gap between groups by value and 95 % interval; None of fewer than two.

    Give it groups with enough cases alone. The interval of a difference is from those of both (MOVER; Zou and Donner
    2008), each widened to the level that all pairs need together (Bonferroni). Groups share no cases.
    """
    from scipy.special import ndtri  # slow to import, and a check of a study needs it not

    if len(values) < 2:
        return None
    order = sorted(values, key=lambda group: (values[group], group))
    low, high = order[0], order[-1]
    worst = min(sorted(values), key=lambda group: metric.goodness(values[group]))
    found = None
    if all(group in intervals for group in values):
        pairs = len(values) * (len(values) - 1) // 2
        wider = -float(ndtri(_LEVEL / pairs / 2)) / Z
        found = _difference((values[high], intervals[high]), (values[low], intervals[low]), wider)
    return Gap(metric.name, worst, high, low, values[high] - values[low], found)


def _difference(first: tuple[float, Interval], second: tuple[float, Interval], wider: float) -> Interval:
    (a, (a_low, a_high)), (b, (b_low, b_high)) = first, second
    below, above = math.hypot(a - a_low, b_high - b), math.hypot(a_high - a, b - b_low)
    return a - b - wider * below, a - b + wider * above
