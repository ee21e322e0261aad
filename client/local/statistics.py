"""Closed-form work: sums over the site's cases, from which the coordinator solves what it would from pooled data."""

from __future__ import annotations

import numpy as np
import torch

from client.local.feed import Feed, in_order
from client.local.room import features_in_room
from client.workbench import Workbench
from common.inputs import TableInput
from common.study import Study

_BATCH = 256


def feature_sums(bench: Workbench, feed: Feed) -> dict[str, np.ndarray]:
    """Per task over the labelled training cases, with z = [features; 1] and y one-hot, in float64.

    `TASK/gram` = sum z z' (d+1, d+1), whose last entry is the number of cases; `TASK/cross` = sum z y' (d+1, C).
    """
    width = bench.model.feature_dim + 1
    sums = {}
    for task, classes in bench.model.classes.items():
        sums[f"{task}/gram"] = np.zeros((width, width))
        sums[f"{task}/cross"] = np.zeros((width, classes))
    bench.model.eval()
    body = feed.body(bench.model)
    with torch.inference_mode():
        for batch in feed.batches(in_order(feed.labelled("train"), _BATCH)):
            features = features_in_room(body.features, batch.inputs).double().cpu().numpy()
            z = np.hstack([features, np.ones((len(features), 1))])
            for task in bench.model.classes:
                target = batch.targets[task].cpu().numpy()
                known = target >= 0
                one_hot = np.eye(sums[f"{task}/cross"].shape[1])[target[known]]
                sums[f"{task}/gram"] += z[known].T @ z[known]
                sums[f"{task}/cross"] += z[known].T @ one_hot
    return sums


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
