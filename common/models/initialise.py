"""What a run starts from: the study's model with pretrained weights grafted on, or an ensemble of finished models."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fedgraft.common.base.errors import InputError
from fedgraft.common.models.architecture import Blueprint, blueprint
from fedgraft.common.models.backbones.named import plugins_behind
from fedgraft.common.models.backbones.slim import StandardiseColumns
from fedgraft.common.models.model import (
    Extras,
    TransferModel,
    build_ensemble,
    build_model,
    build_table_model,
    describe,
    load_arrays,
    state_arrays,
)
from fedgraft.common.models.provenance import Provenance, learnt, pretrained
from fedgraft.common.models.weights import KeyReport, fit
from fedgraft.common.plugins.registry import SESSION, version_here
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.model_spec import ENSEMBLE, Teacher
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.aggregates import Standardise
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import linear_heads, mask_heads

_NAME_IT = "Write `plugins: [NAME==VERSION]` into the study."


@dataclass(frozen=True)
class Initialised:
    """The model before the first exchange, and where its entries come from."""

    model: TransferModel
    provenance: Provenance

    def state(self) -> dict[str, np.ndarray]:
        """Copies of all entries."""
        return {key: array.copy() for key, array in state_arrays(self.model).items()}


def make_model(study: Study, seed: int | None = None) -> TransferModel:
    """The study's model with random entries, drawn from its seed or another."""
    return build(blueprint(study, study.model), study.seed if seed is None else seed)


def make_teacher(study: Study, teacher: Teacher) -> TransferModel:
    """A teacher's model for the study's tasks and input, with seeded random entries."""
    return build(blueprint(study, teacher, plain=True), study.seed)


def build(plan: Blueprint, seed: int) -> TransferModel:
    """A model with entries drawn from `seed`. InputError for what cannot be built, or is of code that is not named."""
    _demand_named(plan)
    tasks = {task.name: task for task in plan.tasks}
    heads, masks = linear_heads(plan.tasks), mask_heads(plan.tasks)
    if plan.backbone == ENSEMBLE:
        if masks or not heads:
            raise InputError("An ensemble does not answer with masks.", fix="Leave out tasks that ask for masks.")
        base_models = [build(plan.of_base_model(backbone), seed) for backbone in plan.base_models]
        return build_ensemble(base_models, tasks, seed)
    extras = Extras(masks, plan.domain_discriminators, plan.adapters)
    if isinstance(plan.input, TableInput):
        extras = extras._replace(harmonised=plan.input if plan.input.harmonise is not None else None)
        model = build_table_model(plan.backbone, heads, plan.input.width, seed, extras)
        _scale(model, plan.input)
        return model
    size, channels = plan.input.size, plan.input.channels
    return build_model(plan.backbone, heads, channels=channels, seed=seed, size=size, extras=extras)


def _demand_named(plan: Blueprint) -> None:
    """No code but what is named, in the version that is named, makes a model."""
    for plugin in plan.plugins:
        if (here := version_here(plugin)) != plugin.version:
            fix = "Give that file with --plugin." if plugin.is_local else f"pip install {plugin}"
            if plugin.distribution.startswith(SESSION):
                fix = "It was typed in a session: use it there (run.export, run.model), or train with it in a file."
            raise InputError(f"The model needs {plugin}, and here is {here or 'none'}.", fix=fix)
    for plugin in plugins_behind(plan.base_models or (plan.backbone,)):
        if plugin not in plan.plugins:
            raise InputError(f"The backbone {plan.backbone!r} is of {plugin}, which is not named.", fix=_NAME_IT)


def initialise(study: Study, seed: int | None = None) -> Initialised:
    """Build the model, seeded by the study or otherwise, and load its weights. WeightsError if they do not fit."""
    model = make_model(study, seed)
    taken, provenance = pretrained(study, study.model, describe(model))
    _put(taken, model)
    if isinstance(study.input, TableInput) and not _keeps_scale(study):
        _scale(model, study.input)  # whatever scale the weights have learnt
    return Initialised(model, provenance)


def teach(study: Study, stage: Stage) -> dict[str, np.ndarray]:
    """The entries of the stage's teacher; none if it has none. WeightsError if they do not fit the study."""
    if (teacher := study.teacher_of(stage)) is None:
        return {}
    model = make_teacher(study, teacher)
    taken = learnt(study, teacher, describe(model))
    return {key: taken.get(key, array).copy() for key, array in state_arrays(model).items()}


def graft(
    model: TransferModel, arrays: Mapping[str, np.ndarray], source: str, heads: Collection[str] = ()
) -> KeyReport:
    """Put pretrained backbone entries into a model, and the `heads` of these tasks; WeightsError as `fit`."""
    taken, report = fit(describe(model), arrays, source, heads)
    _put(taken, model)
    return report


def _keeps_scale(study: Study) -> bool:
    """Whether heads come with the weights and no stage makes a scale anew: then theirs is the one they learnt on.

    The study's own numbers in its place, or the middle of public ranges, would make another model of a finished one.
    """
    return study.model.heads == "weights" and not any(isinstance(one.aggregate, Standardise) for one in study.plan)


def _put(taken: Mapping[str, np.ndarray], model: TransferModel) -> None:
    load_arrays(model, state_arrays(model) | dict(taken))


def _scale(model: TransferModel, columns: TableInput) -> None:
    """Put the study's public numbers into the model's standardising layer, if it gives some."""
    if (scale := columns.public_scale()) is None:
        return
    for part in model.backbone.modules():
        if isinstance(part, StandardiseColumns):
            part.mean.copy_(torch.tensor(scale[0]))
            part.std.copy_(torch.tensor(scale[1]))
