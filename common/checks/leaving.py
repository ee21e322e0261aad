"""How much leaves a site in one round of a stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedgraft.common.compression.changes import travelling
from fedgraft.common.methods.memory.carried import sent_shapes
from fedgraft.common.methods.memory.method import Ground
from fedgraft.common.models.model import TransferModel, state_arrays
from fedgraft.common.protocol.routing import forms_of
from fedgraft.common.secure_aggregation.masking import Layout
from fedgraft.common.secure_aggregation.summing import tensor_shapes
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.study import Study

_WORD = 8


@dataclass(frozen=True)
class Leaving:
    """What a site sends back in one round of a stage: arrays, numbers in them, and their bytes."""

    entries: int
    numbers: int
    bytes: int


def leaving(study: Study, stage: Stage, model: TransferModel) -> Leaving:
    """What leaves a site in one round of this stage, besides counts and metrics; under masks a number is a word."""
    state = state_arrays(model)
    tags = model.tags()
    shapes = sent_shapes(Ground(study, stage, tags, forms_of(state)), state)
    sizes = {name: math.prod(shape) for name, (shape, _) in shapes.items()}
    if study.secure_aggregation and shapes:
        size = _WORD * Layout.of(tensor_shapes(shapes, study, stage)).words
    else:
        as_sent = travelling(stage, tags, shapes).values()
        size = sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in as_sent)
    return Leaving(len(sizes), sum(sizes.values()), size)
