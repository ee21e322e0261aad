"""By which metrics arms can be compared."""

from __future__ import annotations

from fedgraft.common.base.errors import InputError
from fedgraft.common.config.suggest import instead
from fedgraft.common.metrics.plugged import metric_named
from fedgraft.common.plugins.registry import Kind, names

OWN = ("auroc", "accuracy", "balanced_accuracy", "brier")
"""Metrics that `bootstrap` draws anew; all others are plug-ins', which are made of what each case adds."""


def metric_faults(name: str) -> list[str]:
    """Why a comparison cannot be by this metric; nothing if it can."""
    if name in OWN:
        return []
    if name not in (known := names(Kind.METRICS)):
        return [f"metric: there is no {name!r} to compare by{instead(name, [*OWN, *known])}"]
    try:
        found = metric_named(name)
    except InputError as error:
        return [f"metric: {error}"]
    if "multiclass" not in found.tasks or found.better == "near_0":
        return [f"metric: {name} is for {', '.join(found.tasks)}; only classes can be compared yet, by more or by less"]
    return []
