"""Every reply is looked over before it counts: names, shapes, types, finite, plausible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap

import numpy as np

from fedgraft.common.base.errors import InputError
from fedgraft.common.closed_form.cox import EVENTS
from fedgraft.common.closed_form.survival import EXITS
from fedgraft.common.closed_form.temperature import CASES
from fedgraft.common.methods.memory.carried import methods_of, sums_of
from fedgraft.common.methods.memory.method import Ground
from fedgraft.common.metrics.plugged import sums_of_arrays, values_of
from fedgraft.common.metrics.subgroups import names_of
from fedgraft.common.metrics.sums.task_metrics import TaskSums, sums_from
from fedgraft.common.metrics.support import is_exact
from fedgraft.common.protocol.instructions import (
    NOISE,
    TRUNK,
    Arrays,
    Code,
    Greeting,
    Instruction,
    Update,
    type_name,
)
from fedgraft.common.protocol.packed_symmetric import PACKED
from fedgraft.common.protocol.routing import DISTANCES, Shapes, Tags
from fedgraft.common.study.plan import Gradient, Role, Stage, Statistics
from fedgraft.common.study.schedule import last_exchange
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Task
from fedgraft.server.rounds.exchange.trial import solvable

_MOST_CASES = 1e12
_LARGEST_SUM = 1e100
_LARGEST_SQUARE = 1e10
"""The mean square of a feature: that of a network's features is some hundreds at most."""

_SPLITS = frozenset({"train", "val", "test"})


@dataclass(frozen=True)
class Limits:
    """What every update of one exchange is held against."""

    stage: Stage
    tags: Tags
    state: Arrays
    shapes: Shapes
    limit: float
    """Largest norm of a change, as a multiple of the norm of what travels (plus 1, for entries that start at zero)."""
    on: Ground | None = None
    """What the stage's methods stand on, where these ask for sums."""

    @cached_property
    def entries(self) -> frozenset[str]:
        """What of it are entries of the model, and no sums."""
        return frozenset(self.shapes.keys() & self.tags.keys())

    @cached_property
    def norm(self) -> float:
        """Norm of what travels, as it was before: floats that are no norm statistics."""
        before = [key for key in self.shapes if key in self.entries and self.state[key].dtype.kind == "f"]
        return math.sqrt(sum(squares(self.state[k]) for k in before if self.tags[k].role is not Role.NORM_STATS))


def fault(update: Update, instruction: Instruction, limits: Limits) -> Code | None:
    """Why this update must not count, or None."""
    code = _bad_form(update, instruction, limits)
    return code if code is not None or not instruction.work else bad_content(update, limits)


def bad_content(update: Update, limits: Limits) -> Code | None:
    """Why values of the right form must not count, or None."""
    if isinstance(limits.stage.local, Gradient):
        return _bad_weight(update, limits) or _bad_change(update.tensors, limits) or _bad_addends(update, limits)
    code = _bad_sums(update.tensors, noised=NOISE in limits.shapes)
    if code is None and isinstance(limits.stage.local, Statistics):
        code = None if solvable(update, limits.stage, limits.tags, limits.state) else Code.GARBAGE
    return code


def _bad_form(update: Update, instruction: Instruction, limits: Limits) -> Code | None:
    if update.exchange != instruction.exchange:
        return Code.GARBAGE
    if set(update.tensors) != (set(limits.shapes) if instruction.work else set()):
        return Code.WRONG_KEYS
    if any((array.shape, type_name(array)) != limits.shapes[key] for key, array in update.tensors.items()):
        return Code.WRONG_SHAPE
    return None if all(math.isfinite(value) for value in update.train.values()) else Code.NOT_FINITE


def _bad_weight(update: Update, limits: Limits) -> Code | None:
    """Weights count cases: whole ones or none, and of all that the aggregation will ask for."""
    plausible = all(weight == 0 or 0.5 < weight < _MOST_CASES for weight in update.weights.values())
    asked = {limits.tags[key].task or TRUNK for key in limits.entries}
    if not asked and not update.weights:  # sums under masks, which need none
        return None
    told = asked <= update.weights.keys() and update.weights.get(TRUNK, 0) > 0
    return None if plausible and told else Code.BAD_WEIGHT


def _bad_change(tensors: Arrays, limits: Limits) -> Code | None:
    """Norm statistics may move far without harm, as long as they are finite, and variances what has a root."""
    after = 0.0
    with beyond_floats():
        for key, array in tensors.items():
            if key not in limits.entries:
                continue
            if array.dtype.kind != "f":
                if array.size and not -_MOST_CASES < int(array.min()) <= int(array.max()) < _MOST_CASES:
                    return Code.TOO_LARGE
            elif limits.tags[key].role is Role.NORM_STATS:
                if not np.isfinite(array).all() or (key.endswith("var") and (array < 0).any()):
                    return Code.NOT_FINITE
            else:
                after += _squares(array, limits.state[key])
    if not math.isfinite(after):
        return Code.NOT_FINITE
    return Code.TOO_LARGE if math.sqrt(after) > limits.limit * (limits.norm + 1) else None


def _bad_addends(update: Update, limits: Limits) -> Code | None:
    """Sums that a method asks for beside the entries are finite, and not out of reach."""
    sums = [array for key, array in update.tensors.items() if key not in limits.entries]
    if not all(np.isfinite(array).all() for array in sums):
        return Code.NOT_FINITE
    if any(float(np.abs(array).max(initial=0)) > _LARGEST_SUM for array in sums):
        return Code.TOO_LARGE
    on = limits.on
    if sums and on is None:
        return Code.WRONG_KEYS
    good = on is None or all(one.plausible(on, sums_of(on, one, update.tensors)) for one in methods_of(limits.stage))
    return None if good else Code.GARBAGE


def _bad_sums(tensors: Arrays, *, noised: bool) -> Code | None:
    """Noise may make a small count negative, but its own variance never is."""
    if not all(np.isfinite(array).all() for array in tensors.values()):
        return Code.NOT_FINITE
    if any(float(np.abs(array).max(initial=0)) > _LARGEST_SUM for array in tensors.values()):
        return Code.TOO_LARGE
    if noised and not (tensors[NOISE] > 0).all():
        return Code.BAD_WEIGHT
    counts = [array for key, array in tensors.items() if key in ("count", DISTANCES, EXITS, EVENTS)]
    halves = [(np.atleast_2d(half), _cases(tensors, key)) for key, half in tensors.items() if key.endswith(PACKED)]
    counts += [cases for _, cases in halves]
    least = -_MOST_CASES if noised else 0.0
    if not all((count >= least).all() and (count < _MOST_CASES).all() for count in counts):
        return Code.BAD_WEIGHT
    if not noised and not (
        all(starmap(_of_cases, halves)) and all((count == np.rint(count)).all() for count in counts)
    ):
        return Code.BAD_WEIGHT
    return None


def _cases(tensors: Arrays, key: str) -> np.ndarray:
    """How many cases each half of a task's sums is of: its last number, unless they stand beside it."""
    beside = tensors.get(f"{key.removesuffix(PACKED)}/{CASES}")
    return np.atleast_2d(tensors[key])[:, -1] if beside is None else beside


def _of_cases(half: np.ndarray, count: np.ndarray) -> bool:
    """Whether halves of second moments (problems, cells) are nothing without cases, and with them not out of reach."""
    side = (math.isqrt(8 * half.shape[1] + 1) - 1) // 2
    own = np.cumsum(np.arange(1, side + 1)) - 1  # where the diagonal lies
    cases = count[:, None]
    return bool(((cases > 0) | (half == 0)).all() and (half[:, own] <= _LARGEST_SQUARE * cases).all())


_CHUNK = 1 << 16


def squares(array: np.ndarray, other: np.ndarray | None = None) -> float:
    """Sum of squares of `array`, or of its difference from `other`, in pieces that stay in the processor's cache."""
    with beyond_floats():
        return _squares(array, other)


def beyond_floats() -> AbstractContextManager[None]:
    """Within it no warning is given: what is beyond floats is no number, and seen as that."""
    return np.errstate(over="ignore", invalid="ignore")


def _squares(array: np.ndarray, other: np.ndarray | None = None) -> float:
    flat, total = array.reshape(-1), 0.0
    if other is None:
        return float(np.dot(flat, flat))
    base = other.reshape(-1)
    if flat.size <= _CHUNK:
        part = flat - base
        return float(np.dot(part, part))
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK] - base[start : start + _CHUNK]
        total += float(np.dot(part, part))
    return total


def metric_sums(update: Update, study: Study, instruction: Instruction) -> dict[str, TaskSums] | None:
    """The metric sums of all tasks, or {} if none came; None if they are not what they should be.

    Sums that were not asked for, or of some tasks alone, or that metrics cannot be worked out from, are that too.
    InputError for sums that no predictions could have given.
    """
    if not update.metrics:
        return {}
    tasks, groups = study.tasks_by_name.keys(), update.metrics.keys() - study.tasks_by_name.keys()
    if instruction.evaluate is None or not tasks <= update.metrics.keys():
        return None
    more, by_name = study.evaluate.metrics, study.tasks_by_name
    sums = {task: sums_of_arrays(more, by_name[task], update.metrics[task]) for task in tasks}
    if groups and instruction.exchange != last_exchange(study):
        return None
    sums |= _of_groups(study, {name: update.metrics[name] for name in sorted(groups)}, sums)
    values = [value for own in sums.values() for value in values_of(own).values()]
    return sums if all(value is None or math.isfinite(value) for value in values) else None


def _of_groups(study: Study, metrics: Mapping[str, Arrays], whole: Mapping[str, TaskSums]) -> dict[str, TaskSums]:
    """Sums by subgroup. InputError for names that the study has not, and for groups larger than all cases together."""
    known = names_of(study)
    if not metrics.keys() <= known.keys():
        raise InputError("Metric sums: there is a subgroup that the study has not.")
    sums = {name: sums_from(study.tasks_by_name[known[name]], arrays) for name, arrays in metrics.items()}
    if any(is_exact(whole[known[name]]) and own.n > whole[known[name]].n for name, own in sums.items()):
        raise InputError("Metric sums: a subgroup has more cases than there are.")
    return sums


def greeting_fault(greeting: Greeting, study: Study) -> Code | None:
    """Why this greeting must not count, or None: it counts what the study has, and for masked sums it has a nonce."""
    known = set(greeting.cases) <= _SPLITS and all(
        task in study.tasks_by_name and set(counts) <= set(_counted(study.tasks_by_name[task]))
        for task, counts in greeting.labels.items()
    )
    drawn = bool(greeting.nonce) or greeting.observer or not study.secure_aggregation
    return None if known and drawn else Code.GARBAGE


def _counted(task: AnyTask) -> tuple[str, ...]:
    return task.names if isinstance(task, Task | Multilabel) else ("known",)
