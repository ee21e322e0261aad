"""Metric sums of a task of any kind: the one place that knows which sums belong to which question."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.mask_metrics import MaskSums
from fedgraft.common.metrics.sums.value_metrics import ValueSums
from fedgraft.common.study.tasks import (
    AnyTask,
    Multilabel,
    Regression,
    Segmentation,
)

TaskSums = ClassificationSums | LabelSums | ValueSums | MaskSums


@dataclass(frozen=True)
class HeadlineMetrics:
    """What reports show first of a kind of task: `metrics` by macro mean over sites, the first also by worst site."""

    metrics: tuple[str, ...]
    lower_is_better: bool = False

    @property
    def first(self) -> str:
        """The metric that sites are ranked by."""
        return self.metrics[0]


_CLASSES = HeadlineMetrics(("auroc", "accuracy", "balanced_accuracy"))
_SHOWN: Mapping[type[TaskSums], HeadlineMetrics] = {
    ClassificationSums: _CLASSES,
    LabelSums: _CLASSES,
    ValueSums: HeadlineMetrics(("mae", "rmse", "r2"), lower_is_better=True),
    MaskSums: HeadlineMetrics(("dice", "hd95_mm", "missed")),
}


def shown_of(values: Mapping[str, Any]) -> HeadlineMetrics:
    """What reports show first of metrics of which only the values are there, as in a run's record."""
    if "dice" in values:
        return _SHOWN[MaskSums]
    return _SHOWN[ValueSums] if "mae" in values else _CLASSES


def kind_of(task: AnyTask) -> type[TaskSums]:
    """The type of a task's sums, such as `MaskSums` for a segmentation."""
    if isinstance(task, Segmentation):
        return MaskSums
    if isinstance(task, Regression):
        return ValueSums
    return LabelSums if isinstance(task, Multilabel) else ClassificationSums


def headline_metrics(what: AnyTask | type[TaskSums]) -> HeadlineMetrics:
    """What reports show first of a task, or of sums of that type."""
    return _SHOWN[what if isinstance(what, type) else kind_of(what)]


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
        case _:
            return ClassificationSums.of(answers, targets)


def sums_from(task: AnyTask, arrays: Mapping[str, Any]) -> TaskSums:
    """From the arrays that sums travel as; InputError for anything that no predictions could have given."""
    match task:
        case Segmentation():
            return MaskSums.from_arrays(arrays)
        case Regression():
            return ValueSums.from_arrays(arrays)
        case Multilabel():
            return LabelSums.from_arrays(arrays, task.outputs)
        case _:
            return ClassificationSums.from_arrays(arrays, task.outputs)


def read_sums(arrays: Mapping[str, Any]) -> TaskSums:
    """From a run's record, which says by its keys what it is of; InputError as `sums_from`."""
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
    return left + right  # type: ignore[operator]  # both are of one type


def plain(sums: TaskSums) -> dict[str, Any]:
    """The sums' arrays as JSON knows them, which has no NaN."""
    return {key: _without_nan(array) for key, array in sums.arrays().items()}


def _without_nan(array: NDArray[Any]) -> Any:
    values = array.tolist()
    if array.dtype.kind == "f" and np.isnan(array).any():
        return [None if math.isnan(value) else value for value in values]
    return values


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple | np.ndarray) else 0
