"""What of an update travels as a rounded change, and how both ends come from it to the same entries."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fedgraft.common.compression.codecs import CODECS, CompressionError
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import Shapes, Tags, forms_of, sent
from fedgraft.common.protocol.states import State, sums_address
from fedgraft.common.study.plan import Role, Stage

FEW = 1024
"""Entries of fewer numbers travel whole: biases and norm layers are little of a model, and much of what it does."""

_OWNER = "compress"


@dataclass(frozen=True)
class Residual(State):
    """What rounding has left out so far, by entry; it stays at the site and is added to its next change."""

    owner: ClassVar[str] = _OWNER
    left: Arrays = field(default_factory=dict)


def compressed_keys(stage: Stage, tags: Tags, forms: Shapes) -> tuple[str, ...]:
    """The entries that travel as rounded changes."""
    if stage.compress.kind == "none":
        return ()
    return tuple(
        key
        for key in sent(stage, tags)
        if forms[key][1] == "float32"
        and math.prod(forms[key][0]) >= FEW
        and tags[key].role not in (Role.NORM_STATS, Role.SCALE)
    )


def travelling(stage: Stage, tags: Tags, shapes: Shapes) -> Shapes:
    """The forms of an update as it travels, from those of the entries and sums that it stands for."""
    keys, codec = compressed_keys(stage, tags, shapes), CODECS.get(stage.compress.kind)
    found = {name: form for name, form in shapes.items() if name not in keys}
    for key in keys:
        assert codec is not None
        forms = codec.forms(math.prod(shapes[key][0]), stage.compress)
        found |= {_address(stage, part, key): form for part, form in forms.items()}
    return found


def written(
    stage: Stage, keys: Collection[str], tensors: Arrays, received: Arrays, residual: Residual | None
) -> tuple[dict[str, np.ndarray], Residual]:
    """An update as it travels, and what rounding has left out of it. A change that is not finite travels as it is."""
    codec, before = CODECS[stage.compress.kind], residual.left if residual else {}
    found, left = {name: array for name, array in tensors.items() if name not in keys}, {}
    for key in keys:
        change = (tensors[key] - received[key]).reshape(-1)
        if key in before:
            change = change + before[key]
        if not np.isfinite(change).all():
            raise CompressionError(key)
        parts = codec.write(change, stage.compress)
        left[key] = change - codec.read(parts, len(change), stage.compress)
        found |= {_address(stage, part, key): array for part, array in parts.items()}
    return found, Residual(left)


def restored(stage: Stage, tags: Tags, tensors: Arrays, state: Arrays) -> Arrays:
    """The entries and sums that an update stands for; `state` are the entries that the site was sent.

    CompressionError for arrays that nobody can have written. What else may be wrong with it is left as it is.
    """
    if stage.compress.kind == "none":
        return tensors
    keys = compressed_keys(stage, tags, forms_of(state))
    codec, found = CODECS[stage.compress.kind], dict(tensors)
    for key in keys:
        count = state[key].size
        parts = {}
        for part, form in codec.forms(count, stage.compress).items():
            array = found.pop(_address(stage, part, key), None)
            if array is None or (array.shape, array.dtype.name) != form:
                raise CompressionError(key)
            parts[part] = array
        with np.errstate(over="ignore"):  # what is beyond floats is no number, and is seen as that
            found[key] = state[key] + codec.read(parts, count, stage.compress).reshape(state[key].shape)
    return found


def _address(stage: Stage, part: str, key: str) -> str:
    return sums_address(stage.name, f"{_OWNER}-{part}", key)
