"""What a model takes from pretrained weights: the entries, checked against what it is made of, and where they are from.

Nothing here needs torch, so that a study is checked without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedgraft.common.base.errors import WeightsError
from fedgraft.common.models.architecture import Architecture
from fedgraft.common.models.weights import (
    KeyReport,
    WeightsManifest,
    fit,
    load_for,
    load_manifest,
)
from fedgraft.common.protocol.routing import is_private
from fedgraft.common.study.model_spec import (
    ENSEMBLE,
    BaseModelSpec,
    Model,
    Teacher,
)
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task

_UNSTATED = "not stated"


@dataclass(frozen=True)
class Provenance:
    """Where a model's entries come from; all of them are random if there is neither a manifest nor base models."""

    manifest: WeightsManifest | None = None
    report: KeyReport | None = None
    base_models: tuple[WeightsManifest, ...] = ()
    """Of an ensemble: where each base model comes from."""

    @property
    def says(self) -> str:
        """The ids of the weights that the entries come from, or that they are random."""
        found = (self.manifest,) if self.manifest else self.base_models
        return " and ".join(manifest.id for manifest in found) or "random entries"

    @property
    def licence(self) -> str:
        """The licences of all that went in."""
        found = (self.manifest,) if self.manifest else self.base_models
        return " and ".join(dict.fromkeys(manifest.licence for manifest in found)) or _UNSTATED


Arrays = Mapping[str, np.ndarray]


def held_out(study: Study) -> str:
    """How patients are split: what decides it at a site beside the site's own key and policy.

    In a private study each patient stands alone, in any other they are dealt out, so that the same seed tests others.
    """
    split = study.split
    rule = ", each patient alone" if is_private(study) else ""
    return f"seed {study.seed}, {split.train:g} train, {split.val:g} val, {split.test:g} test{rule}"


def pretrained(study: Study, spec: Model, made_of: Architecture) -> tuple[Arrays, Provenance]:
    """The entries that a model of this architecture takes from its weights. WeightsError if they do not fit."""
    if spec.weights is None:
        return _assembled(study, spec, made_of) if spec.base_models else ({}, Provenance())
    manifest, arrays = load_for(spec.weights, spec.adapters)
    if (manifest.backbone, manifest.base_models) != (spec.backbone, tuple(one.backbone for one in spec.base_models)):
        there, wanted = (
            _described(manifest.backbone, manifest.base_models),
            _described(spec.backbone, spec.architectures),
        )
        raise WeightsError(f"{spec.weights}: are for the backbone {there}, not {wanted}.")
    heads = frozenset(study.tasks_by_name) if spec.heads == "weights" else frozenset()
    if heads:
        _made_alike(study, manifest, spec.weights)
        _heads_fit(study, manifest, spec.weights)
    if not study.plan:  # it is only measured, and answers for what it has learnt to see
        _seen_alike(study, manifest, spec.weights)
    taken, report = fit(made_of, arrays, spec.weights, heads)
    return taken, Provenance(manifest, report)


def learnt(study: Study, teacher: Teacher, made_of: Architecture) -> Arrays:
    """The entries of a stage's teacher. WeightsError if they do not fit it, or it does not fit the study."""
    heads = "weights" if teacher.weights is not None else "fresh"
    taken, provenance = pretrained(study, teacher.model_copy(update={"heads": heads}), made_of)
    if provenance.manifest is not None:
        _seen_alike(study, provenance.manifest, str(teacher.weights))
        _held_out_alike(study, provenance.manifest, str(teacher.weights), elsewhere=teacher.elsewhere)
    return taken


def _assembled(study: Study, spec: Model, made_of: Architecture) -> tuple[Arrays, Provenance]:
    """Every base model's own entries, at its place in the ensemble."""
    taken: dict[str, np.ndarray] = {}
    found = []
    for at, (base_model, own) in enumerate(zip(spec.base_models, made_of.base_models, strict=True)):
        manifest, arrays = _seated(study, base_model, own, f"base_models.{at} ({base_model.weights})")
        taken |= {f"backbone.base_models.{at}.{key}": array for key, array in arrays.items()}
        found.append(manifest)
    return taken, Provenance(base_models=tuple(found))


def _seated(study: Study, base_model: BaseModelSpec, own: Architecture, who: str) -> tuple[WeightsManifest, Arrays]:
    manifest, arrays = load_for(str(base_model.weights), None)
    if manifest.backbone != base_model.backbone:
        raise WeightsError(
            f"{who}: is a {_described(manifest.backbone, manifest.base_models)}, but the study says "
            f"{base_model.backbone}.",
            fix=f"Write {{weights: {base_model.weights}, backbone: {manifest.backbone}}}.",
        )
    _made_alike(study, manifest, who)
    _seen_alike(study, manifest, who)
    _heads_fit(study, manifest, who)
    _held_out_alike(study, manifest, who, elsewhere=base_model.elsewhere)
    taken, _ = fit(own, arrays, who, frozenset(study.tasks_by_name))
    return manifest, taken


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
                fix="Set model.heads: fresh, or name weights that were trained for these classes."
                if study.plan
                else "Name weights that were trained for these classes: where nobody trains, heads come with them.",
            )


def _made_alike(study: Study, manifest: WeightsManifest, who: str) -> None:
    """A finished model answers as the code does that it learnt with, and other code of that name may not."""
    for plugin in manifest.plugins:
        if plugin not in study.plugins:
            there = ", ".join(map(str, study.plugins)) or "none"
            raise WeightsError(
                f"{who}: were made with the plug-in {plugin}, and the study names: {there}.",
                fix=f"Write `plugins: [{plugin}]`, and install that.",
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


def finished(study: Study, ref: str, *, elsewhere: bool) -> WeightsManifest:
    """The manifest of a finished model that this study is to measure. WeightsError if that would be no fair test.

    It answers for the study's input and tasks, and has held out the patients that are tested here; or it learnt
    `elsewhere`, from none of them.
    """
    manifest = load_manifest(ref)
    _seen_alike(study, manifest, ref)
    _heads_fit(study, manifest, ref)
    _held_out_alike(study, manifest, ref, elsewhere=elsewhere)
    return manifest


def may_have_learnt(study: Study, manifest: WeightsManifest) -> str:
    """A sentence where a model that is measured may have learnt from cases that are tested; "" where it has not."""
    if manifest.held_out == held_out(study):
        return ""
    how = (
        f"held out patients by {manifest.held_out}" if manifest.held_out else "does not say which patients it held out"
    )
    return (
        f"The model ({manifest.trained_on}) {how}, and this study tests by {held_out(study)}: where a hospital of this "
        "study took part in its training, it may have learnt from cases that are tested here."
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
