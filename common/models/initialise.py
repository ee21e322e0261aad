"""What a run starts from: the study's model with pretrained weights grafted on, or an ensemble of finished models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedgraft.common.base.errors import InputError, WeightsError
from fedgraft.common.models.ensemble import Ensemble
from fedgraft.common.models.model import (
    Extras,
    TransferModel,
    build_ensemble,
    build_model,
    build_table_model,
    state_arrays,
)
from fedgraft.common.models.slim import StandardiseColumns
from fedgraft.common.models.weights import (
    KeyReport,
    WeightsManifest,
    graft,
    load_weights,
)
from fedgraft.common.protocol.routing import is_private
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.model_spec import (
    ENSEMBLE,
    BaseModelSpec,
    Model,
    Teacher,
)
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task

_UNSTATED = "not stated"


@dataclass(frozen=True)
class Initialised:
    """The model before the first exchange, and where its entries come from."""

    model: TransferModel
    manifest: WeightsManifest | None
    report: KeyReport | None
    base_models: tuple[WeightsManifest, ...] = ()
    """Of an ensemble: where each base model comes from."""

    def state(self) -> dict[str, np.ndarray]:
        """Copies of all entries."""
        return {key: array.copy() for key, array in state_arrays(self.model).items()}

    @property
    def says(self) -> str:
        """Where the entries come from, in a few words."""
        found = (self.manifest,) if self.manifest else self.base_models
        return " and ".join(manifest.id for manifest in found if manifest) or "random entries"

    @property
    def licence(self) -> str:
        """The licences of all that went in."""
        found = (self.manifest,) if self.manifest else self.base_models
        return " and ".join(dict.fromkeys(manifest.licence for manifest in found if manifest)) or _UNSTATED


def held_out(study: Study) -> str:
    """How patients are split: what decides it at a site beside the site's own key and policy.

    In a private study each patient stands alone, in any other they are dealt out, so that the same seed tests others.
    """
    split = study.split
    rule = ", each patient alone" if is_private(study) else ""
    return f"seed {study.seed}, {split.train:g} train, {split.val:g} val, {split.test:g} test{rule}"


def make_model(study: Study) -> TransferModel:
    """The study's model with seeded random entries."""
    return _made(study, study.model)


def make_teacher(study: Study, teacher: Teacher) -> TransferModel:
    """A teacher's model for the study's tasks and input, with seeded random entries."""
    return _made(study, teacher, plain=True)


def _made(study: Study, model: Model, *, plain: bool = False) -> TransferModel:
    """A model with seeded random entries; `plain` is one without domain discriminators, for whoever only answers."""
    if model.backbone == ENSEMBLE:
        if study.mask_heads or not study.heads:
            raise InputError("An ensemble does not answer with masks.", fix="Leave out tasks that ask for masks.")
        base_models = [
            _made(study, Model(backbone=base_model.backbone), plain=True) for base_model in model.base_models
        ]
        return build_ensemble(base_models, study.tasks_by_name, study.seed)
    heads, seed, domain_discriminators = study.heads, study.seed, () if plain else study.domain_discriminators
    if isinstance(study.input, TableInput):
        made = build_table_model(model.backbone, heads, study.input.width, seed, domain_discriminators)
        _scale(made, study.input)
        return made
    size, channels = study.input.size, study.input.channels
    extras = Extras(study.mask_heads, domain_discriminators)
    return build_model(model.backbone, heads, channels=channels, seed=seed, size=size, extras=extras)


def start(study: Study) -> Initialised:
    """Build the model, seeded by the study, and load its weights. WeightsError if they do not fit."""
    return _filled(study, study.model, make_model(study))


def teach(study: Study, stage: Stage) -> dict[str, np.ndarray]:
    """The entries of the stage's teacher; none if it has none. WeightsError if they do not fit the study."""
    if (teacher := study.teacher_of(stage)) is None:
        return {}
    heads = "weights" if teacher.weights is not None else "fresh"
    begin = _filled(study, teacher.model_copy(update={"heads": heads}), make_teacher(study, teacher))
    if begin.manifest is not None:
        _seen_alike(study, begin.manifest, str(teacher.weights))
        _held_out_alike(study, begin.manifest, str(teacher.weights), elsewhere=teacher.elsewhere)
    return begin.state()


def _filled(study: Study, spec: Model, model: TransferModel) -> Initialised:
    if spec.weights is None:
        return _assembled(study, spec, model) if spec.base_models else Initialised(model, None, None)
    manifest, arrays = load_weights(spec.weights)
    if (manifest.backbone, manifest.base_models) != (spec.backbone, tuple(one.backbone for one in spec.base_models)):
        there, wanted = (
            _described(manifest.backbone, manifest.base_models),
            _described(spec.backbone, spec.architectures),
        )
        raise WeightsError(f"{spec.weights}: are for the backbone {there}, not {wanted}.")
    heads = frozenset(study.tasks_by_name) if spec.heads == "weights" else frozenset()
    if heads:
        _heads_fit(study, manifest, spec.weights)
    report = graft(model, arrays, spec.weights, heads)
    if isinstance(study.input, TableInput):
        _scale(model, study.input)  # whatever scale the weights have learnt
    return Initialised(model, manifest, report)


def _scale(model: TransferModel, columns: TableInput) -> None:
    """Put the study's public numbers into the model's standardising layer, if it gives some."""
    if (scale := columns.public_scale()) is None:
        return
    for part in model.backbone.modules():
        if isinstance(part, StandardiseColumns):
            part.mean.copy_(torch.tensor(scale[0]))
            part.std.copy_(torch.tensor(scale[1]))


def _assembled(study: Study, spec: Model, model: TransferModel) -> Initialised:
    """An ensemble with every base model's own entries in it."""
    ensemble, found = model.backbone, []
    assert isinstance(ensemble, Ensemble)
    for at, (base_model, place) in enumerate(zip(spec.base_models, ensemble.base_models, strict=True)):
        assert isinstance(place, TransferModel)
        found.append(_seated(study, base_model, place, f"base_models.{at} ({base_model.weights})"))
    return Initialised(model, None, None, tuple(found))


def _seated(study: Study, base_model: BaseModelSpec, place: TransferModel, who: str) -> WeightsManifest:
    manifest, arrays = load_weights(str(base_model.weights))
    if manifest.backbone != base_model.backbone:
        raise WeightsError(
            f"{who}: is a {_described(manifest.backbone, manifest.base_models)}, but the study says "
            f"{base_model.backbone}.",
            fix=f"Write {{weights: {base_model.weights}, backbone: {manifest.backbone}}}.",
        )
    _seen_alike(study, manifest, who)
    _heads_fit(study, manifest, who)
    _held_out_alike(study, manifest, who, elsewhere=base_model.elsewhere)
    graft(place, arrays, who, frozenset(study.tasks_by_name))
    return manifest


def _described(backbone: str, base_models: tuple[str, ...]) -> str:
    return f"{ENSEMBLE} of {' and '.join(base_models)}" if backbone == ENSEMBLE else backbone


def _heads_fit(study: Study, manifest: WeightsManifest, who: str) -> None:
    others = {task.name: task.model_copy(update={"weight": 1.0}) for task in manifest.tasks}
    for task, asked in study.tasks_by_name.items():
        alike = others.get(task) == asked.model_copy(update={"weight": 1.0})
        if not (manifest.classes.get(task) == asked.classes if isinstance(asked, Task) else alike):
            found = ", ".join(manifest.classes.get(task, ())) or "none"
            raise WeightsError(
                f"{who}: have no head for task {task!r} with its classes (found: {found}).",
                fix="Set model.heads: fresh, or name weights that were trained for these classes.",
            )


def _seen_alike(study: Study, manifest: WeightsManifest, who: str) -> None:
    """A finished model answers for images as it has learnt them: of this size, so many channels, so prepared."""
    learnt = manifest.input or manifest.table
    if learnt != study.input:
        there = "unknown input" if learnt is None else learnt.model_dump()
        here = study.input.model_dump()
        raise WeightsError(
            f"{who}: answers for other input than the study's. It was trained on {there}, the study gives {here}.",
            fix="Give the study that input, or train the model anew on this one.",
        )


def _held_out_alike(study: Study, manifest: WeightsManifest, who: str, *, elsewhere: bool) -> None:
    if elsewhere or manifest.held_out == held_out(study):
        return
    there = f"was split by {manifest.held_out}" if manifest.held_out else "does not say how patients were split"
    raise WeightsError(
        f"{who}: {there}, and this study by {held_out(study)}, so it may have learnt from cases that are tested here.",
        fix="Give both the same seed and split, and let both or none be private; or say elsewhere: true, if it learnt "
        "from none of these patients.",
    )
