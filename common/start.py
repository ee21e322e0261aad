"""What a run starts from: the study's model, with the pretrained weights grafted on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.errors import WeightsError
from common.inputs import TableInput
from common.model import Extras, TransferModel, build_model, build_table_model, state_arrays
from common.study import Study
from common.tasks import Task
from common.weights import KeyReport, WeightsManifest, graft, load_weights


@dataclass(frozen=True)
class Start:
    """The model before the first exchange, and where its entries come from."""

    model: TransferModel
    manifest: WeightsManifest | None
    report: KeyReport | None

    def state(self) -> dict[str, np.ndarray]:
        """Copies of all entries."""
        return {key: array.copy() for key, array in state_arrays(self.model).items()}


def make_model(study: Study) -> TransferModel:
    """The study's model with seeded random entries."""
    name, heads, seed = study.model.backbone, study.heads, study.seed
    if isinstance(study.input, TableInput):
        return build_table_model(name, heads, study.input.width, seed, study.critics)
    size, channels = study.input.size, study.input.channels
    extras = Extras(study.mask_heads, study.critics)
    return build_model(name, heads, channels=channels, seed=seed, size=size, extras=extras)


def start(study: Study) -> Start:
    """Build the model, seeded by the study, and load its weights. WeightsError if they do not fit."""
    model = make_model(study)
    if study.model.weights is None:
        return Start(model, None, None)
    manifest, arrays = load_weights(study.model.weights)
    if manifest.backbone != study.model.backbone:
        raise WeightsError(
            f"{study.model.weights}: are for the backbone {manifest.backbone}, not {study.model.backbone}."
        )
    heads = study.asked if study.model.heads == "weights" else {}
    others = {task.name: task.model_copy(update={"weight": 1.0}) for task in manifest.tasks}
    for task, asked in heads.items():
        alike = others.get(task) == asked.model_copy(update={"weight": 1.0})
        if not (manifest.classes.get(task) == asked.classes if isinstance(asked, Task) else alike):
            found = ", ".join(manifest.classes.get(task, ())) or "none"
            raise WeightsError(
                f"{study.model.weights}: have no head for task {task!r} with its classes (found: {found}).",
                fix="Set model.heads: fresh, or name weights that were trained for these classes.",
            )
    return Start(model, manifest, graft(model, arrays, study.model.weights, frozenset(heads)))
