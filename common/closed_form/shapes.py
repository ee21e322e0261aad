"""Names, shapes and types of what a site's update of a stage must hold: one rule for both sides."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedgraft.common.closed_form.cox import hazard_shapes
from fedgraft.common.closed_form.survival import EXITS, shape_of
from fedgraft.common.closed_form.temperature import ANSWERS, BASE_MODELS, CASES, TEMPERATURES
from fedgraft.common.harmonisation.combat import sum_shapes
from fedgraft.common.protocol.instructions import NOISE
from fedgraft.common.protocol.packed_symmetric import PACKED, cells
from fedgraft.common.protocol.routing import BINS, DISTANCES, KINDS, Shapes, Tags, sent
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.plan import Stage, Statistics
from fedgraft.common.study.stages.survival import Survival
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression

Shape = tuple[tuple[int, ...], str]

_NOISE: dict[str, Shape] = {NOISE: ((1,), "float64")}


def cross_name(task: AnyTask) -> str:
    """The name of a task's sums of features times labels; a value is no logit, so that its head is not scaled."""
    return f"{task.name}/{'value' if isinstance(task, Regression) else 'cross'}"


def expected(study: Study, stage: Stage, tags: Tags, state: Mapping[str, np.ndarray]) -> Shapes:
    """What an update of this stage must hold."""
    if isinstance(stage.local, Statistics) and stage.local.of not in ("features", "residuals"):
        return _other_sums(study, stage.local, tags, state)
    if isinstance(stage.local, Statistics):
        shapes = {}
        for task, count in study.heads.items():
            dim = state[f"heads.{task}.weight"].shape[1] + 1
            several = isinstance(study.tasks_by_name[task], Multilabel)
            half, kind = cells(dim), KINDS[stage.local.precision]
            shapes[task + PACKED] = ((count, half) if several else (half,), kind)
            shapes[cross_name(study.tasks_by_name[task])] = ((dim, count), kind)
        return {**shapes, **({} if stage.local.private is None else _NOISE)}
    return {key: (state[key].shape, state[key].dtype.name) for key in sent(stage, tags)}


def _other_sums(study: Study, local: Statistics, tags: Tags, state: Mapping[str, np.ndarray]) -> Shapes:
    """Of sums that are not of features and labels."""
    noise = {} if local.private is None else _NOISE
    if local.of == "columns":
        width = state[next(key for key in tags if key.endswith(".mean"))].shape
        return {**dict.fromkeys(("count", "sum", "squares"), (width, "float64")), **noise}
    if local.of == "harmonisation":
        columns = study.input
        assert isinstance(columns, TableInput)
        return sum_shapes(len(columns.harmonised), len(columns.covariate_names))
    if local.of == "distances":
        return {DISTANCES: ((BINS,), "float64")}
    if local.survival is not None:
        return _survival_shapes(study, local.survival, local.of, state) | noise
    if local.of in (BASE_MODELS, ANSWERS):
        return _loss_shapes(study, local.of)
    return _curvature_shapes(study, local.precision, state)


def _survival_shapes(study: Study, spec: Survival, of: str, state: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    """Of counts of who left when, or of what a step of Cox's regression needs of them."""
    if of == "survival":
        return {EXITS: (shape_of(spec, study), "float64")}
    strata, _, bins = shape_of(spec, study)
    width = state[f"heads.{next(iter(study.heads))}.weight"].shape[1]
    return {name: (shape, "float64") for name, shape in hazard_shapes(strata, bins - 1, width).items()}


def _curvature_shapes(study: Study, precision: str, state: Mapping[str, np.ndarray]) -> Shapes:
    """Of a step of Newton's method: of classes one matrix for all of them, of several labels one for each."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for task, count in study.heads.items():
        dim, kind = state[f"heads.{task}.weight"].shape[1] + 1, KINDS[precision]
        several = isinstance(study.tasks_by_name[task], Multilabel)
        shapes[task + PACKED] = ((count, cells(dim)) if several else (cells(dim * count),), kind)
        shapes[cross_name(study.tasks_by_name[task])] = ((dim, count), kind)
        shapes[f"{task}/{CASES}"] = ((count if several else 1,), kind)
    return shapes


def _loss_shapes(study: Study, of: str) -> Shapes:
    """Of sums that temperatures are chosen from: losses on the grid, by base model or of the heads, and cases."""
    rows = len(study.model.base_models) if of == BASE_MODELS else 1
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for task in study.calibrated:
        shapes |= {f"{task}/{of}": ((rows, len(TEMPERATURES)), "float64"), f"{task}/{CASES}": ((1,), "float64")}
    return shapes
