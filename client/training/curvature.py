"""What a step of Newton's method needs of a site's cases: what the heads get wrong, and how that curves."""

from __future__ import annotations

import numpy as np
import torch

from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.closed_form.shapes import cross_name
from fedgraft.common.closed_form.temperature import CASES
from fedgraft.common.models.ensemble import likely
from fedgraft.common.study.inputs import Split
from fedgraft.common.study.tasks import Multilabel, Regression

_BATCH = 256
Pair = tuple[np.ndarray, np.ndarray]


def curvature_sums(local_model: LocalModel, loader: Loader, split: Split = "train") -> dict[str, np.ndarray]:
    """Per task over the split's labelled cases, with z = [features; 1], in float64, as `logistic` explains them.

    `TASK/gram` (C(d+1), C(d+1)) of classes, (L, d+1, d+1) of several labels, (d+1, d+1) of a value; `TASK/cross`
    (d+1, C) or `TASK/value` (d+1, 1); `TASK/cases` (1,), or (L,) where each label is known for cases of its own.
    """
    width = local_model.model.feature_dim + 1
    sums: dict[str, np.ndarray] = {}
    for name, count in local_model.model.classes.items():
        several = isinstance(local_model.tasks[name], Multilabel)
        side = (count, width, width) if several else (count * width,) * 2
        sums[f"{name}/gram"], sums[f"{name}/{CASES}"] = np.zeros(side), np.zeros(count if several else 1)
        sums[cross_name(local_model.tasks[name])] = np.zeros((width, count))
    local_model.model.eval()
    body = loader.body(local_model.model)
    with torch.inference_mode():
        for batch in loader.batches(in_order(loader.labelled(split), _BATCH)):
            features, answers = body.both(batch.inputs)
            z = np.hstack([features.double().cpu().numpy(), np.ones((len(features), 1))])
            for name, logits in answers.items():
                said = likely(local_model.tasks[name], logits.double()).cpu().numpy()
                _add(sums, local_model, name, z, (batch.targets[name].cpu().numpy(), said))
    return sums


def _add(sums: dict[str, np.ndarray], local_model: LocalModel, name: str, z: np.ndarray, pair: Pair) -> None:
    """One batch's part of a task's sums."""
    task, (target, said) = local_model.tasks[name], pair
    cases, gram, cross = sums[f"{name}/{CASES}"], sums[f"{name}/gram"], sums[cross_name(task)]
    if isinstance(task, Multilabel):
        for label in range(said.shape[1]):
            known = ~np.isnan(target[:, label])
            rows, p = z[known], said[known, label]
            gram[label] += rows.T @ (rows * (p * (1 - p))[:, None])
            cross[:, label] += rows.T @ (target[known, label] - p)
            cases[label] += known.sum()
        return
    if isinstance(task, Regression):
        known = ~np.isnan(target)
        gram += z[known].T @ z[known]
        cross[:, 0] += z[known].T @ ((target[known] - task.mean) / task.std - said[known, 0])
    else:
        known = target >= 0
        rows, p = z[known], said[known]
        width, count = z.shape[1], p.shape[1]
        for one in range(count):
            for other in range(count):
                bend = p[:, one] * (float(one == other) - p[:, other])
                block = np.s_[one * width : (one + 1) * width, other * width : (other + 1) * width]
                gram[block] += rows.T @ (rows * bend[:, None])
        cross += rows.T @ (np.eye(count)[target[known]] - p)
    cases += known.sum()
