"""Metric sums of a task of any kind: the one place that knows which sums belong to which question."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.mask_metrics import MaskSums
from fedgraft.common.metrics.sums.value_metrics import ValueSums
from fedgraft.common.metrics.table import OF_CLASSES, OF_MASKS, OF_VALUES
from fedgraft.common.study.tasks import (
    AnyTask,
    Multilabel,
    Regression,
    Segmentation,
    Task,
)

TaskSums = ClassificationSums | LabelSums | ValueSums | MaskSums
MORE = "more:"
"""Begins the names of plug-ins' sums among a task's arrays."""


def kind_of(task: AnyTask) -> type[TaskSums]:
    """The type of a task's sums, such as `MaskSums` for a segmentation."""
    match task:
        case Segmentation():
            return MaskSums
        case Regression():
            return ValueSums
        case Multilabel():
            return LabelSums
        case Task():
            return ClassificationSums
    assert_never(task)


def usual(sums: TaskSums) -> tuple[str, ...]:
    """The metrics that are shown first of sums of this kind, unless a study says others."""
    match sums:
        case ClassificationSums() | LabelSums():
            return OF_CLASSES
        case ValueSums():
            return OF_VALUES
        case MaskSums():
            return OF_MASKS
    assert_never(sums)


def zero(task: AnyTask) -> TaskSums:
    """The sums over no cases of this task: what `+` begins with."""
    kind = kind_of(task)
    return kind.zero(task.outputs) if kind in (ClassificationSums, LabelSums) else kind.zero()  # type: ignore[call-arg]


def sums_of(task: AnyTask, answers: NDArray[Any], targets: NDArray[Any]) -> TaskSums:
    """Sums over what the model answered: logits, values in the unit, or of masks rows as `mask_rows` gives them."""
    match task:
        case Segmentation():
            return MaskSums.of(answers)
        case Regression():
            return ValueSums.of(answers, targets)
        case Multilabel():
            return LabelSums.of(answers, targets)
        case Task():
            return ClassificationSums.of(answers, targets)
    assert_never(task)


def sums_from(task: AnyTask, arrays: Mapping[str, Any]) -> TaskSums:
    """From the arrays that sums travel as; InputError for anything that no predictions could have given."""
    match task:
        case Segmentation():
            return MaskSums.from_arrays(arrays)
        case Regression():
            return ValueSums.from_arrays(arrays)
        case Multilabel():
            return LabelSums.from_arrays(arrays, task.outputs)
        case Task():
            return ClassificationSums.from_arrays(arrays, task.outputs)
    assert_never(task)


def read_sums(arrays: Mapping[str, Any]) -> TaskSums:
    """From a run's record, which says by its keys what it is of, without plug-ins' sums; InputError as `sums_from`."""
    arrays, _ = parted(arrays)
    if "dice" in arrays:
        return MaskSums.from_arrays(arrays)
    if "absolute" in arrays:
        return ValueSums.from_arrays(arrays)
    if "label_confusion" in arrays:
        return LabelSums.from_arrays(arrays, _length(arrays["label_confusion"]))
    return ClassificationSums.from_arrays(arrays, _length(arrays.get("confusion")))


def add(left: TaskSums, right: TaskSums) -> TaskSums:
    """The sum of two of one kind. InputError for two kinds."""
    if type(left) is not type(right):
        raise InputError("Metric sums of two kinds cannot be added.")
    whole: TaskSums = left + right  # type: ignore[operator]  # both are of one type
    both = [name for name in left.more if name in right.more]
    return replace(whole, more={name: left.more[name] + right.more[name] for name in both}) if both else whole


def arrays_of(sums: TaskSums) -> dict[str, NDArray[Any]]:
    """The sums for the wire, those of plug-ins' metrics among them."""
    return {**sums.arrays(), **{MORE + name: array for name, array in sums.more.items()}}


def parted(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `arrays_of` gave: a task's own sums, and by name those of plug-ins' metrics."""
    own = {key: array for key, array in arrays.items() if not str(key).startswith(MORE)}
    more = {key.removeprefix(MORE): array for key, array in arrays.items() if key not in own}
    return own, more


def plain(sums: TaskSums) -> dict[str, Any]:
    """The sums' arrays as JSON knows them, which has no NaN."""
    return {key: _without_nan(array) for key, array in arrays_of(sums).items()}


def _without_nan(array: NDArray[Any]) -> Any:
    values = array.tolist()
    if array.dtype.kind == "f" and np.isnan(array).any():
        return [None if math.isnan(value) else value for value in values]
    return values


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple | np.ndarray) else 0
