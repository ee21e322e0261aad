"""Closed-form work: sums over the site's cases, from which the coordinator solves what it would from pooled data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from client.local.feed import Feed, in_order
from client.local.halves import features_in_room
from client.workbench import Workbench
from common.aside import COVARIANCE, MEAN
from common.inputs import TableInput
from common.orders import Split
from common.plan import Statistics
from common.study import Study
from common.tasks import AnyTask, Multilabel, Regression
from common.travel import DISTANCES, cross_name
from common.unlike import counted, distances

_BATCH = 256
_ALL = slice(None)


@dataclass(frozen=True)
class Cases:
    """A site's cases as they are, and as seen through the backbone, by split."""

    plain: Feed
    seen: Callable[[Split], Feed]


def site_sums(
    local: Statistics, study: Study, bench: Workbench, cases: Cases, aside: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The sums that a stage asks for; `aside` is what came beside the model."""
    match local.of:
        case "columns":
            return column_sums(study, cases.plain)
        case "distances":
            return distance_counts(bench, cases.seen("val"), aside)
        case _:
            return feature_sums(bench, cases.seen("train"))


def feature_sums(bench: Workbench, feed: Feed) -> dict[str, np.ndarray]:
    """Per task over the labelled training cases, with z = [features; 1], in float64.

    `TASK/gram` = sum z z' (d+1, d+1), whose last entry is the number of cases; `TASK/cross` = sum z y' (d+1, C), with y
    one-hot. A value's is called `TASK/value`, with y = (value - mean) / std (d+1, 1). Of several labels each has a gram
    of its own, (L, d+1, d+1), over the cases where it is known, and y is 1 or -1. Masks have no sums.
    """
    width = bench.model.feature_dim + 1
    sums = {}
    for task, count in bench.model.classes.items():
        several = isinstance(bench.tasks[task], Multilabel)
        sums[f"{task}/gram"] = np.zeros((count, width, width) if several else (width, width))
        sums[cross_name(bench.tasks[task])] = np.zeros((width, count))
    bench.model.eval()
    body = feed.body(bench.model)
    with torch.inference_mode():
        for batch in feed.batches(in_order(feed.labelled("train"), _BATCH)):
            features = features_in_room(body.features, batch.inputs).double().cpu().numpy()
            z = np.hstack([features, np.ones((len(features), 1))])
            for task in bench.model.classes:
                target = batch.targets[task].cpu().numpy()
                for place, rows, y in _coded(bench.tasks[task], target):
                    sums[f"{task}/gram"][place] += z[rows].T @ z[rows]
                    sums[cross_name(bench.tasks[task])][..., place] += z[rows].T @ y
    return sums


def distance_counts(bench: Workbench, feed: Feed, aside: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`distances`: how many of the labelled validation cases are how far from the moments in `aside`, (BINS,)."""
    found = [np.zeros(0)]
    bench.model.eval()
    body = feed.body(bench.model)
    with torch.inference_mode():
        for batch in feed.batches(in_order(feed.labelled("val"), _BATCH)):
            features = features_in_room(body.features, batch.inputs).double().cpu().numpy()
            found.append(distances(features, aside[MEAN], aside[COVARIANCE]))
    return {DISTANCES: counted(np.concatenate(found))}


def _coded(task: AnyTask, target: np.ndarray) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Where sums belong, the cases that have a label, and their labels as numbers."""
    if isinstance(task, Multilabel):
        for label in range(len(task.labels)):
            known = ~np.isnan(target[:, label])
            yield label, known, 2.0 * target[known, label].astype(np.float64) - 1
    elif isinstance(task, Regression):
        known = ~np.isnan(target)
        yield _ALL, known, ((target[known].astype(np.float64) - task.mean) / task.std)[:, None]
    else:
        known = target >= 0
        yield _ALL, known, np.eye(task.outputs)[target[known]]


def column_sums(study: Study, feed: Feed) -> dict[str, np.ndarray]:
    """Per column of the table over the training cases, leaving out missing values: `count`, `sum`, `squares`."""
    width = study.input.width if isinstance(study.input, TableInput) else 0
    count, total, squares = np.zeros(width), np.zeros(width), np.zeros(width)
    for batch in feed.batches(in_order(feed.splits["train"], 65536)):
        columns = batch.inputs.double().cpu().numpy()
        count += (~np.isnan(columns)).sum(0)
        total += np.nansum(columns, 0)
        squares += np.nansum(columns**2, 0)
    return {"count": count, "sum": total, "squares": squares}
