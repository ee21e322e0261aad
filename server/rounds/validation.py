"""Every reply is looked over before it counts: names, shapes, types, finite, plausible."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.task_metrics import TaskSums, sums_from
from fedgraft.common.protocol.instructions import (
    NOISE,
    TRUNK,
    Arrays,
    Code,
    Instruction,
    Update,
    type_name,
)
from fedgraft.common.protocol.packed_symmetric import PACKED
from fedgraft.common.protocol.routing import DISTANCES, Shapes, Tags
from fedgraft.common.study.plan import Gradient, Role, Stage
from fedgraft.common.study.study import Study

_MOST_CASES = 1e12


@dataclass(frozen=True)
class Limits:
    """What every update of one exchange is held against."""

    stage: Stage
    tags: Tags
    state: Arrays
    shapes: Shapes
    limit: float
    """Largest norm of a change, as a multiple of the norm of what travels (plus 1, for entries that start at zero)."""

    @cached_property
    def norm(self) -> float:
        """Norm of what travels, as it was before: floats that are no norm statistics."""
        before = [key for key in self.shapes if key in self.state and self.state[key].dtype.kind == "f"]
        return math.sqrt(sum(squares(self.state[k]) for k in before if self.tags[k].role is not Role.NORM_STATS))


def fault(update: Update, instruction: Instruction, limits: Limits) -> Code | None:
    """Why this update must not count, or None."""
    code = _bad_form(update, instruction, limits)
    return code if code is not None or not instruction.work else bad_content(update, limits)


def bad_content(update: Update, limits: Limits) -> Code | None:
    """Why values of the right form must not count, or None."""
    if isinstance(limits.stage.local, Gradient):
        return _bad_weight(update) or _bad_change(update.tensors, limits)
    return _bad_sums(update.tensors, noised=NOISE in limits.shapes)


def _bad_form(update: Update, instruction: Instruction, limits: Limits) -> Code | None:
    if update.exchange != instruction.exchange:
        return Code.GARBAGE
    if set(update.tensors) != (set(limits.shapes) if instruction.work else set()):
        return Code.WRONG_KEYS
    if any((array.shape, type_name(array)) != limits.shapes[key] for key, array in update.tensors.items()):
        return Code.WRONG_SHAPE
    return None if all(math.isfinite(value) for value in update.train.values()) else Code.NOT_FINITE


def _bad_weight(update: Update) -> Code | None:
    plausible = all(math.isfinite(weight) and 0 <= weight < _MOST_CASES for weight in update.weights.values())
    return None if plausible and update.weights.get(TRUNK, 0) > 0 else Code.BAD_WEIGHT


def _bad_change(tensors: Arrays, limits: Limits) -> Code | None:
    """Norm statistics may move far without harm, so only their being finite is looked at."""
    after = 0.0
    for key, array in tensors.items():
        if array.dtype.kind != "f":
            continue
        if limits.tags[key].role is Role.NORM_STATS:
            if not np.isfinite(array).all():
                return Code.NOT_FINITE
            continue
        after += squares(array, limits.state[key])
    if not math.isfinite(after):
        return Code.NOT_FINITE
    return Code.TOO_LARGE if math.sqrt(after) > limits.limit * (limits.norm + 1) else None


def _bad_sums(tensors: Arrays, *, noised: bool) -> Code | None:
    """Noise may make a small count negative, but its own variance never is."""
    if not all(np.isfinite(array).all() for array in tensors.values()):
        return Code.NOT_FINITE
    counts = [array for key, array in tensors.items() if key in ("count", DISTANCES)]
    counts += [array[..., -1] for key, array in tensors.items() if key.endswith(PACKED)]
    least = -_MOST_CASES if noised else 0.0
    if noised and not (tensors[NOISE] > 0).all():
        return Code.BAD_WEIGHT
    return None if all((count >= least).all() and (count < _MOST_CASES).all() for count in counts) else Code.BAD_WEIGHT


_CHUNK = 1 << 16


def squares(array: np.ndarray, other: np.ndarray | None = None) -> float:
    """Sum of squares of `array`, or of its difference from `other`, in pieces that stay in the processor's cache."""
    flat = array.reshape(-1)
    if other is None:
        return float(np.dot(flat, flat))
    total, base = 0.0, other.reshape(-1)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK] - base[start : start + _CHUNK]
        total += float(np.dot(part, part))
    return total


def metric_sums(update: Update, study: Study) -> dict[str, TaskSums] | None:
    """The metric sums by task, or None if they are not what they should be."""
    sums = {}
    try:
        for task, arrays in update.metrics.items():
            sums[task] = sums_from(study.tasks_by_name[task], dict(arrays))
    except (InputError, KeyError):
        return None
    return sums
