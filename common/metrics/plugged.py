"""Metrics that plug-ins bring: mergeable by how they are made, from what each case adds.

An entry point of the group `fedgraft.metrics` is a class, made without arguments. `tasks` names the kinds that it is
for, `better` is "higher", "lower" or "near_0", and `low` and `high` are the ends of its values. `cases(outputs,
targets)` gives what each case adds, (n, numbers), every number within `adds`; `value(sums)` makes the metric of the
sums (numbers,) over any cases, None where it is not defined. Outputs and targets are those of cases that are known:
logits (n, classes) and classes (n,); logits (n, labels) and 1, 0 or NaN; values (n,) in their unit; logits (n, H, W)
and masks of True and False. Masks are shown batch by batch, since all of them together would not fit into memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import ENDS, FedgraftError, InputError
from fedgraft.common.metrics.sums.mask_metrics import COLUMNS
from fedgraft.common.metrics.sums.task_metrics import TaskSums, parted, sums_from
from fedgraft.common.metrics.support import is_exact
from fedgraft.common.metrics.table import TABLE, Better, Metric
from fedgraft.common.plugins.registry import Kind, load
from fedgraft.common.study.tasks import AnyTask

Floats = NDArray[np.float64]
_KINDS = ("multiclass", "multilabel", "regression", "segmentation")
_SLACK = 1e-9


@dataclass(frozen=True)
class PluggedMetric:
    """One of them: what it says of itself, how much a case may add, and the object that works it out."""

    metric: Metric
    adds: tuple[float, float]
    made: Any

    def cases(self, outputs: NDArray[Any], targets: NDArray[Any]) -> Floats:
        """What each case adds, (n, numbers). InputError if it is something else, or out of its own bounds."""
        found = np.asarray(self._tried(lambda: self.made.cases(outputs, targets), "cases"), np.float64)
        low, high = self.adds
        if found.ndim != 2 or len(found) != len(outputs):
            raise InputError(
                f"The metric {self.metric.name!r} gives {found.shape} of {len(outputs)} cases, not a row each."
            )
        if not (np.isfinite(found).all() and (found >= low - _SLACK).all() and (found <= high + _SLACK).all()):
            raise InputError(f"The metric {self.metric.name!r}: a case adds what is not from {low:g} to {high:g}.")
        return found

    def value(self, sums: Floats) -> float | None:
        """The metric of these sums; None where it is not defined. InputError for what its own ends rule out."""
        found = self._tried(lambda: _number(self.made.value(sums)), "value")
        if found is None or math.isnan(found):
            return None
        if not math.isclose(self.metric.within(found), found, abs_tol=1e-6):
            raise InputError(f"The metric {self.metric.name!r} is {found:g}, which is past its own ends.")
        return self.metric.within(found)

    def demand_works(self, task: AnyTask) -> None:
        """InputError if it does not work on some made-up cases of this task."""
        self.value(self.cases(*_made_up(task)).sum(axis=0))

    def numbers(self, task: AnyTask) -> int:
        """How many sums it has of this task: as many as of made-up cases, since it may not know what none would be."""
        return int(self.cases(*_made_up(task)).shape[1])

    def summed(self, task: AnyTask, outputs: NDArray[Any], targets: NDArray[Any]) -> Floats:
        """What these cases add up to; zeros of none."""
        return self.cases(outputs, targets).sum(axis=0) if len(outputs) else np.zeros(self.numbers(task))

    def _tried(self, attempt: Any, what: str) -> Any:
        try:
            return attempt()
        except (FedgraftError, *ENDS):
            raise
        except BaseException as error:  # the code of others may raise anything
            said = f"{type(error).__name__}: {error}"
            raise InputError(f"The metric {self.metric.name!r}: `{what}` fails: {said}") from error


def _number(found: Any) -> float | None:
    return None if found is None else float(found)


def _made_up(task: AnyTask) -> tuple[NDArray[Any], NDArray[Any]]:
    """Outputs and targets of some cases, as metrics are shown them; values are near their mean and almost right."""
    draw, n = np.random.default_rng(0), 5
    if task.kind == "segmentation":
        return draw.normal(size=(n, 4, 4)).astype(np.float32), draw.random((n, 4, 4)) < 0.5
    if task.kind == "regression":
        values = task.mean + task.std * np.linspace(-0.1, 0.1, n)
        return values + 0.01 * task.std, values
    logits = draw.normal(size=(n, task.outputs))
    if task.kind == "multiclass":
        return logits, draw.integers(0, task.outputs, n)
    return logits, (draw.random(logits.shape) < 0.5).astype(np.float64)


def plugged_metric(name: str) -> PluggedMetric:
    """The plug-in's metric of this name. InputError if there is none, or it does not say what it is."""
    made = load(Kind.METRICS, name, TABLE)
    facts = Metric(
        name,
        name.replace("_", " "),
        tuple(getattr(made, "tasks", ())),
        cast(Better, getattr(made, "better", None)),
        getattr(made, "low", None),
        getattr(made, "high", None),
    )
    if facts.better not in (known := get_args(Better)):
        raise InputError(
            f"The metric {name!r} does not say which way is better.", fix=f"Set `better` to {' or '.join(known)}."
        )
    if not facts.tasks or not set(facts.tasks) <= set(_KINDS):
        raise InputError(
            f"The metric {name!r} does not say what tasks it is for.",
            fix=f"Set `tasks` to any of {', '.join(_KINDS)}.",
        )
    low, high = getattr(made, "adds", (0.0, 1.0))
    try:
        return PluggedMetric(facts, (float(low), float(high)), made())
    except TypeError as error:
        raise InputError(f"The metric {name!r} cannot be made: {error}") from error


def metric_named(name: str) -> Metric:
    """A metric of the table, or a plug-in's. InputError for a name that nobody has."""
    return TABLE[name] if name in TABLE else plugged_metric(name).metric


def with_more(
    names: tuple[str, ...], task: AnyTask, sums: TaskSums, outputs: NDArray[Any], targets: NDArray[Any]
) -> TaskSums:
    """The sums together with those of the plug-ins' metrics that are for the task."""
    there = _known(task, targets)
    if task.kind == "segmentation":
        rows = outputs[there, len(COLUMNS) :].sum(axis=0)
        ends = np.cumsum([one.numbers(task) for one in asked_of(names, task)])
        parts = np.split(rows, ends[:-1]) if len(ends) else []
        return replace(sums, more=dict(zip((o.metric.name for o in asked_of(names, task)), parts, strict=True)))
    more = {one.metric.name: one.summed(task, outputs[there], targets[there]) for one in asked_of(names, task)}
    return replace(sums, more=more)


def asked_of(names: tuple[str, ...], task: AnyTask) -> list[PluggedMetric]:
    """Those of these metrics that are for the task, in their order."""
    return [one for one in map(plugged_metric, names) if task.kind in one.metric.tasks]


def more_of_masks(
    names: tuple[str, ...], task: AnyTask, logits: NDArray[Any], targets: NDArray[Any]
) -> NDArray[np.float64]:
    """What images add to the plug-ins' metrics of a task of masks, (N, numbers of all together); NaN if not known.

    These columns go behind those of `mask_rows`, where `with_more` finds them.
    """
    there, asked = targets[:, 0, 0] >= 0, asked_of(names, task)
    rows = np.full((len(logits), sum(one.numbers(task) for one in asked)), np.nan)
    if asked and there.any():
        shown = logits[there], targets[there] == 1
        rows[there] = np.concatenate([one.cases(*shown) for one in asked], axis=1)
    return rows


def read_more(names: tuple[str, ...], task: AnyTask, sums: TaskSums, arrays: Mapping[str, NDArray[Any]]) -> TaskSums:
    """The same, from what a site has sent. InputError for what no cases could have added up to."""
    asked = {one.metric.name: one for one in asked_of(names, task)}
    if set(arrays) != set(asked):
        raise InputError(f"Metric sums: {sorted(arrays)} are not those of {sorted(asked)}.")
    for name, one in asked.items():
        array, (low, high) = np.asarray(arrays[name]), one.adds
        if array.dtype.kind != "f" or array.shape != (one.numbers(task),) or not np.isfinite(array).all():
            raise InputError(f"Metric sums: {name} is {array.dtype} {array.shape}, or not finite.")
        slack = _SLACK * (1 + sums.n)
        if (array < sums.n * low - slack).any() or (array > sums.n * high + slack).any():
            raise InputError(f"Metric sums: {name} and the number of cases do not agree.")
    return replace(sums, more={name: np.asarray(arrays[name], np.float64) for name in asked})


def sums_of_arrays(names: tuple[str, ...], task: AnyTask, arrays: Mapping[str, NDArray[Any]]) -> TaskSums:
    """The sums of one task from all arrays that are sent of it; those of plug-ins where exact figures are shown at all.

    InputError for what no cases could have added up to.
    """
    own, more = parted(arrays)
    sums = sums_from(task, own)
    return read_more(names, task, sums, more) if names and is_exact(sums) else sums


def values_of(sums: TaskSums) -> dict[str, float | None]:
    """All metrics by name, those of plug-ins too, plus `n`."""
    return {**sums.values(), **{name: plugged_metric(name).value(own) for name, own in sums.more.items()}}


def _known(task: AnyTask, targets: NDArray[Any]) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = targets >= 0 if task.kind == "multiclass" else ~np.isnan(targets)
    return np.asarray(known.reshape(len(known), math.prod(known.shape[1:])).any(axis=1))
