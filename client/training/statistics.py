"""Closed-form work: sums over the site's cases, from which the coordinator solves what it would from pooled data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.training.columns.harmonise import harmonisation_sums, harmonised
from fedgraft.client.training.curvature import curvature_sums
from fedgraft.client.training.device.autocast import in_halves
from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.survival import cox_sums, survival_sums
from fedgraft.common.closed_form.cox import COEFFICIENTS, CoxSteps
from fedgraft.common.closed_form.moments import COVARIANCE, MEAN, FeatureMoments
from fedgraft.common.closed_form.ood import counted, distances
from fedgraft.common.closed_form.shapes import cross_name
from fedgraft.common.closed_form.temperature import (
    BASE_MODELS,
    CASES,
    TEMPERATURES,
    class_losses,
    label_losses,
)
from fedgraft.common.models.ensemble import Ensemble, likely
from fedgraft.common.models.model import Heads, TransferModel
from fedgraft.common.protocol.routing import DISTANCES
from fedgraft.common.protocol.states import States
from fedgraft.common.study.inputs import Split, TableInput
from fedgraft.common.study.plan import Stage, Statistics
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import (
    AnyTask,
    Multilabel,
    Regression,
    Task,
)

_BATCH = 256
_ALL = slice(None)


@dataclass(frozen=True)
class CaseSource:
    """A site's cases as they are, and as seen through the backbone, by split."""

    plain: Loader
    seen: Callable[[Split], Loader]
    patients: Sequence[str]
    """Whose each case is."""


def site_sums(
    stage: Stage, study: Study, local_model: LocalModel, cases: CaseSource, came: States
) -> dict[str, np.ndarray]:
    """The sums that a stage asks for; `came` are the states that came beside the model."""
    local = stage.local
    assert isinstance(local, Statistics)
    if local.survival is not None and local.of == "hazards":
        steps = came.get(stage.name, CoxSteps)
        assert steps is not None  # they came, or the instruction was refused
        now = steps.coefficients[COEFFICIENTS]
        return cox_sums(local.survival, study, cases.seen("all"), cases.patients, now)
    if local.survival is not None:
        return survival_sums(local.survival, study, cases.plain, cases.patients)
    match local.of:
        case "columns" | "harmonisation":
            return _of_table(study, local, local_model, cases)
        case "distances":
            return distance_counts(local_model, cases.seen("val"), came)
        case "base_models":  # which look at the cases themselves
            return frozen_sums(local_model, cases.plain, local)
        case _:
            return frozen_sums(local_model, cases.seen(local.split), local)


def _of_table(study: Study, local: Statistics, local_model: LocalModel, cases: CaseSource) -> dict[str, np.ndarray]:
    if local.of == "harmonisation":
        return harmonisation_sums(local_model, cases.plain, cases.patients)
    return column_sums(study, cases.plain, local_model)


def frozen_sums(local_model: LocalModel, loader: Loader, spec: Statistics) -> dict[str, np.ndarray]:
    """What a stage asks of cases that a frozen backbone has seen, or that it looks at now."""
    if spec.of == "curvature":
        return curvature_sums(local_model, loader, spec.split)
    if spec.of in ("features", "residuals"):
        return feature_sums(local_model, loader, spec.split, residuals=spec.of == "residuals")
    return loss_sums(local_model, loader, spec.of, spec.split)


def feature_sums(
    local_model: LocalModel, loader: Loader, split: Split = "train", *, residuals: bool = False
) -> dict[str, np.ndarray]:
    """Per task over the split's labelled cases, with z = [features; 1], in float64.

    `TASK/gram` = sum z z' (d+1, d+1), whose last entry is the number of cases; `TASK/cross` = sum z y' (d+1, C), with y
    one-hot. A value's is called `TASK/value`, with y = (value - mean) / std (d+1, 1). Of several labels each has a gram
    of its own, (L, d+1, d+1), over the cases where it is known, and y is 1 or -1. Masks have no sums.

    With `residuals` y is what the heads get wrong: one-hot less probabilities, 1 or 0 less a probability, or a value's
    units less what is said.
    """
    width = local_model.model.feature_dim + 1
    sums = {}
    for task, count in local_model.model.classes.items():
        several = isinstance(local_model.tasks[task], Multilabel)
        sums[f"{task}/gram"] = np.zeros((count, width, width) if several else (width, width))
        sums[cross_name(local_model.tasks[task])] = np.zeros((width, count))
    local_model.model.eval()
    body = loader.body(local_model.model)
    with torch.inference_mode():
        for batch in loader.batches(in_order(loader.labelled(split), _BATCH)):
            seen = in_halves(partial(_seen, body, residuals), batch.inputs)
            features = seen[_FEATURES].double().cpu().numpy()
            z = np.hstack([features, np.ones((len(features), 1))])
            for task in local_model.model.classes:
                target = batch.targets[task].cpu().numpy()
                for place, rows, y in _coded(local_model.tasks[task], target, seen.get(task)):
                    sums[f"{task}/gram"][place] += z[rows].T @ z[rows]
                    sums[cross_name(local_model.tasks[task])][..., place] += z[rows].T @ y
    return sums


def distance_counts(local_model: LocalModel, loader: Loader, came: States) -> dict[str, np.ndarray]:
    """`distances`: how many of the labelled validation cases are how far from the moments that came, (BINS,)."""
    released = came.get("", FeatureMoments)
    assert released is not None  # it came, or the instruction was refused
    mean, covariance = (released.moments[name] for name in (MEAN, COVARIANCE))
    found = [np.zeros(0)]
    local_model.model.eval()
    body = loader.body(local_model.model)
    with torch.inference_mode():
        for batch in loader.batches(in_order(loader.labelled("val"), _BATCH)):
            seen = in_halves(partial(_seen, body, False), batch.inputs)
            features = seen[_FEATURES].double().cpu().numpy()
            found.append(distances(features, mean, covariance))
    return {DISTANCES: counted(np.concatenate(found))}


_FEATURES = "*"


def _seen(body: TransferModel | Heads, residuals: bool, inputs: Tensor) -> dict[str, Tensor]:
    """Features and, if wanted, by task what the heads say: probabilities, or values."""
    if not residuals:
        return {_FEATURES: body.features(inputs)}
    features, answers = body.both(inputs)
    return {_FEATURES: features, **answers}


def _coded(
    task: AnyTask, target: np.ndarray, said: Tensor | None = None
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Where sums belong, the cases that have a label, and their labels as numbers, less what is `said` if it is."""
    less = None if said is None else likely(task, said.double()).cpu().numpy()
    if isinstance(task, Multilabel):
        for label in range(len(task.labels)):
            known = ~np.isnan(target[:, label])
            y = target[known, label].astype(np.float64)
            yield label, known, 2.0 * y - 1 if less is None else y - less[known, label]
    elif isinstance(task, Regression):
        known = ~np.isnan(target)
        y = ((target[known].astype(np.float64) - task.mean) / task.std)[:, None]
        yield _ALL, known, y if less is None else y - less[known]
    else:
        known = target >= 0
        y = np.eye(task.outputs)[target[known]]
        yield _ALL, known, y if less is None else y - less[known]


def loss_sums(local_model: LocalModel, loader: Loader, of: str, split: Split) -> dict[str, np.ndarray]:
    """Per task over the split's labelled cases, in float64, the loss at each temperature of the grid.

    `TASK/base models` (base models, grid) of an ensemble's, which look at the cases themselves, or `TASK/answers` (1,
    grid) of the heads' logits, as they are now; `TASK/cases` (1,) counts what is known. A value has no temperature.
    """
    model = local_model.model
    tasks = {name: task for name, task in local_model.tasks.items() if isinstance(task, Task | Multilabel)}
    model.eval()
    found = {name: (np.zeros((_voices(model, of), len(TEMPERATURES))), np.zeros(1)) for name in tasks}
    with torch.inference_mode():
        for batch in loader.batches(in_order(loader.labelled(split), _BATCH)):
            answers = in_halves(partial(_logits, model, loader.body(model), of), batch.inputs)
            for name, task in tasks.items():
                target, logits = batch.targets[name].cpu().numpy(), answers[name].double().cpu().numpy()
                measure, known = class_losses, target >= 0
                if isinstance(task, Multilabel):
                    measure, known = label_losses, ~np.isnan(target)
                losses, cases = found[name]
                losses += [measure(logits[:, row], target) for row in range(len(losses))]
                cases += known.sum()
    return {f"{name}/{what}": s for name, pair in found.items() for what, s in zip((of, CASES), pair, strict=True)}


def _voices(model: TransferModel, of: str) -> int:
    """How many say something of a case: base models, or the heads as one."""
    return len(model.backbone.base_models) if of == BASE_MODELS and isinstance(model.backbone, Ensemble) else 1


def _logits(model: TransferModel, body: TransferModel | Heads, of: str, inputs: Tensor) -> dict[str, Tensor]:
    """By task (N, base models or 1, outputs)."""
    if of == BASE_MODELS and isinstance(model.backbone, Ensemble):
        return model.backbone.logits(inputs)
    return {task: answers[:, None] for task, answers in body(inputs).items()}


def column_sums(study: Study, loader: Loader, local_model: LocalModel | None = None) -> dict[str, np.ndarray]:
    """Per column of the table over the training cases, leaving out missing values: `count`, `sum`, `squares`.

    With a model whose layer harmonises columns they are of what that layer makes of them.
    """
    width = study.input.width if isinstance(study.input, TableInput) else 0
    count, total, squares = np.zeros(width), np.zeros(width), np.zeros(width)
    for batch in loader.batches(in_order(loader.splits["train"], 65536)):
        columns = harmonised(local_model, batch.inputs).double().cpu().numpy()
        count += (~np.isnan(columns)).sum(0)
        total += np.nansum(columns, 0)
        squares += np.nansum(columns**2, 0)
    return {"count": count, "sum": total, "squares": squares}
