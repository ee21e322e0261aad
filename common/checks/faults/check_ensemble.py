"""Ensembles, temperatures and teachers that cannot work, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from fedgraft.common.study.model_spec import ENSEMBLE
from fedgraft.common.study.plan import (
    Gradient,
    Recalibrate,
    Role,
    Stage,
    Statistics,
)
from fedgraft.common.study.stages.aggregates import Moments, Standardise
from fedgraft.common.study.study import Study


def check_ensemble(study: Study) -> Iterator[str]:
    """What frozen base models rule out, and what teachers do."""
    for at, stage in enumerate(study.plan):
        where = f"plan.{at} ({stage.name})"
        taught = study.teacher_of(stage) is not None
        if taught and study.mask_heads:
            yield f"{where}.local.losses: a teacher draws no masks, but {', '.join(study.mask_heads)} asks for them"
        if study.model.backbone != ENSEMBLE:
            continue
        if isinstance(stage.aggregate, Standardise):
            yield f"{where}: an ensemble's base models have their own standardisation, which stays"
        if isinstance(stage.local, Recalibrate):
            yield f"{where}.local: an ensemble's base models are finished; recalibrate each in a run of its own"
        if isinstance(stage.local, Gradient) and Role.HEAD not in stage.local.train.roles:
            yield (
                f"{where}.local.train: nothing but heads can be trained on an ensemble, whose base models are finished"
            )


def check_calibration(study: Study, stage: Stage, local: Statistics) -> Iterator[str]:
    """What temperatures, and sums over validation cases, need."""
    ensemble = study.model.backbone == ENSEMBLE
    if local.of == "base_models" and not ensemble:
        yield "local.of: base models are those of an ensemble; give the study model.backbone: ensemble"
    if local.of in ("base_models", "answers"):
        if not study.calibrated:
            yield "local.of: no task asks for probabilities, so that there is nothing to calibrate"
        if local.private is not None:
            yield "local.private: losses have no bound that could be noised; not built"
        if stage.where == "unlabelled":
            yield "where: temperatures need labels, but the stage is for unlabelled sites"
    if local.of in ("residuals", "curvature") and local.private is not None:
        yield f"local.private: sums of {local.of} with noise are not built; use gradient work with private"
    if local.of == "answers" and Role.HEAD not in stage.share.roles:
        yield "share: the calibrated heads must reach the sites; share: heads"
    if local.split == "val" and study.split.val == 0:
        yield "local.split: is val, but split.val is 0; give validation a share"
    if local.split == "val" and local.private is not None:
        yield "local.split: noised sums are taken over training cases, whose patients are charged; use train"
    if local.split == "val" and isinstance(stage.aggregate, Moments):
        yield "local.split: moments are those of what later stages learn from; use train"
    learnt_here = local.split == "train" and (ensemble or local.of == "answers")
    if learnt_here and local.private is None and not _elsewhere(study):
        yield (
            "local.split: the model has learnt these cases, so that it looks surer and better on them than it is; "
            "use split: val"
        )


def _elsewhere(study: Study) -> bool:
    """Whether no base model has learnt from the cases of this study's sites."""
    return bool(study.model.base_models) and all(base_model.elsewhere for base_model in study.model.base_models)
