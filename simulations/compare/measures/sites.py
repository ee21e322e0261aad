"""Figures site by site: which answers count at a site, and whether they are enough to say something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedgraft.common.metrics.over_sites import macro_mean
from fedgraft.common.metrics.sums.task_metrics import sums_of
from fedgraft.common.metrics.support import Support, support
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask
from fedgraft.simulations.compare.measures.answers import MERGED, Answers, Found
from fedgraft.simulations.compare.measures.under_weights import own_metrics, value_of


def counted(found: Found, task: str) -> dict[str, Answers]:
    """Each site's answers from the model that is meant for it: its own, or else the one that all share."""
    sites = {site for own in found.values() for site in own}
    best = {site: found.get(site, found.get(MERGED, {})).get(site) for site in sorted(sites)}
    return {site: own[task] for site, own in best.items() if own is not None}


def support_of(task: AnyTask, answers: Answers) -> Support:
    """What the figures of these answers rest on."""
    return support(sums_of(task, answers.outputs, answers.targets))


def enough(own: Mapping[str, Answers], task: AnyTask, floor: int) -> dict[str, Answers]:
    """The sites whose test cases are enough to say something; all of them if no site's are, which the verdict says."""
    return {site: one for site, one in own.items() if support_of(task, one).effective >= floor} or dict(own)


def figures_of(found: Found, study: Study) -> dict[str, Any]:
    """By task all metrics of each site, and their means over the sites with enough cases, as a run's history has them.

    For arms that are no federation, and have no rounds.
    """
    figures: dict[str, Any] = {}
    for name, task in study.tasks_by_name.items():
        own = counted(found, name)
        sites = {
            site: {metric: value_of(metric, task, one) for metric in own_metrics(task)} for site, one in own.items()
        }
        told = [sites[site] for site in enough(own, task, study.evaluate.floor)]
        macro = {metric: macro_mean(told, metric) for metric in own_metrics(task)}
        figures[name] = {"macro": macro, "pooled": None, "sites": sites}
    return figures
