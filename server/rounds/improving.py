"""Whether a stage was still getting better when its rounds were over, from what its sites measured on validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedgraft.common.metrics.shown import shown
from fedgraft.common.metrics.table import Metric, title_with_unit
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask

_LEAST = 0.003
"""A rise by less, from one quarter of the evaluations to the last, is none."""
_LEAST_SHARE = 0.01
"""The same of an error in a unit of its own, over what it was."""

Row = Mapping[str, Any]


def still_improving(study: Study, rows: Sequence[Row]) -> list[str]:
    """A sentence for each task whose figure on validation was still rising in the last rounds of a stage.

    Of a stage whose best figure lies in the last quarter of its evaluations, at least two, if that quarter's mean is
    above that of the one before. Nothing is told of stages that were not evaluated, or that stop early.
    """
    return [
        sentence
        for stage in study.plan
        if isinstance(stage.local, Gradient) and stage.early_stopping is None
        for task in study.tasks
        for sentence in _sentences(stage.name, task, shown(study, task.name).first, rows)
    ]


def _sentences(stage: str, task: AnyTask, metric: Metric, rows: Sequence[Row]) -> Iterator[str]:
    figures = list(_figures(rows, stage, task.name, metric.name))
    quarter = max(2, len(figures) // 4)
    if len(figures) < 2 * quarter:
        return
    reached = np.array([value for _, value in figures])
    values = np.array([metric.goodness(float(value)) for value in reached])
    last, before = float(values[-quarter:].mean()), float(values[-2 * quarter : -quarter].mean())
    least = _LEAST if metric.high == 1 else _LEAST_SHARE * abs(before)
    if values[-quarter:].max() < values.max() or last - before < least:
        return
    was, now = reached[-2 * quarter : -quarter].mean(), reached[-quarter:].mean()
    first, latest = _span(figures[-2 * quarter : -quarter]), _span(figures[-quarter:])
    yield (
        f"{task.name} was still improving when stage {stage} ended: {title_with_unit(metric, task)} on validation went "
        f"from {was:.3f} (rounds {first}) to {now:.3f} (rounds {latest}). More rounds may give more; early_stopping "
        "ends a stage when they no longer do."
    )


def _span(figures: list[tuple[int, float]]) -> str:
    return f"{figures[0][0]} to {figures[-1][0]}"


def _figures(rows: Sequence[Row], stage: str, task: str, metric: str) -> Iterator[tuple[int, float]]:
    """The round after which the model was measured on validation, and what it reached."""
    for row in rows:
        measured = row.get("evaluated") or {}
        if row.get("split") != "val" or measured.get("stage") != stage:
            continue
        value = ((row.get("metrics") or {}).get(task) or {}).get("summary", {}).get(metric)
        if value is not None:
            yield int(measured["round"]), float(value)
