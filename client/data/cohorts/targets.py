"""Targets of one task as an array: what is known of them, and how a cell of a table becomes one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.tasks import (
    UNKNOWN,
    AnyTask,
    Multilabel,
    Regression,
    Segmentation,
    Task,
)

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})
"""What stands for a missing value, in lower case. A class or category may be called so, and then is meant."""

_YES, _NO = frozenset({"1", "1.0", "yes", "true", "y"}), frozenset({"0", "0.0", "no", "false", "n"})
_LARGEST = float(np.finfo(np.float32).max)

Target = int | float | tuple[float, ...]
"""Of a class, a value, or one number per label."""


def known(targets: Tensor) -> Tensor:
    """Which cases have a label, (cases,): a class, a value, a mask, or at least one of several labels."""
    whole = targets >= 0 if not targets.is_floating_point() else ~targets.isnan()
    return whole if whole.ndim == 1 else whole.flatten(1).any(dim=1)


def all_known(targets: Tensor) -> bool:
    """Whether no target is missing: none is -1, or NaN where targets are floats."""
    return bool((targets >= 0).all() if not targets.is_floating_point() else ~targets.isnan().any())


def unknown(task: AnyTask) -> Target:
    """The target of a case of which a table says nothing."""
    if isinstance(task, Multilabel):
        return (math.nan,) * len(task.labels)
    return math.nan if isinstance(task, Regression) else UNKNOWN


def stacked(task: AnyTask, values: Sequence[Target]) -> NDArray[Any]:
    """Targets of all cases: (N,) int64 of classes, (N,) float32 of values, (N, labels) float32."""
    if isinstance(task, Multilabel):
        return np.array(values, dtype=np.float32).reshape(len(values), len(task.labels))
    return np.array(values, dtype=np.float32 if isinstance(task, Regression) else np.int64)


def columns_of(task: AnyTask) -> tuple[tuple[str, str], ...]:
    """The keys of `label_columns` and `label_map`, and the usual column, of each cell that a target is made of."""
    if isinstance(task, Multilabel):
        return tuple((f"{task.name}.{label}", label) for label in task.labels)
    return () if isinstance(task, Segmentation) else ((task.name, task.name),)


def target(task: Task, value: str, spec: CohortSpec, where: str) -> int:
    """Class index of a cell, or UNKNOWN if it is empty. DataError for a value that is no class."""
    mapped = _mapped(spec, task.name, value)
    if mapped in task.classes:
        return task.classes.index(mapped)
    if mapped.lower() in MISSING:
        return UNKNOWN
    raise DataError(
        f"{where} is no class of task {task.name!r}.",
        fix=f"Classes are {', '.join(task.classes)}; others can be renamed by label_map.",
    )


def target_of(task: AnyTask, cells: Mapping[str, tuple[str, str]], spec: CohortSpec) -> Target:
    """A case's target from its cells: text and place in the file, by key of `columns_of`.

    DataError names the place of a cell that cannot be read.
    """
    if isinstance(task, Multilabel):
        return tuple(_yes_or_no(spec, key, *cells[key]) for key, _ in columns_of(task))
    if isinstance(task, Regression):
        return _value(spec, task, *cells[task.name])
    assert isinstance(task, Task)
    return target(task, cells[task.name][0], spec, cells[task.name][1])


def same(left: Target, right: Target) -> bool:
    """Whether two targets are equal, and unknown in the same places."""
    return bool(np.array_equal(np.asarray(left, np.float64), np.asarray(right, np.float64), equal_nan=True))


def label_counts(task: AnyTask, targets: Tensor) -> dict[str, int]:
    """How many cases have each class; of labels how many have a yes; of values and masks how many are known."""
    if isinstance(task, Task):
        counts = Counter(targets.tolist())
        return {name: counts[index] for index, name in enumerate(task.classes)}
    if isinstance(task, Multilabel):
        return {name: int((targets[:, at] == 1).sum()) for at, name in enumerate(task.labels)}
    return {"known": int(known(targets).sum())}


def strata(task: AnyTask, targets: NDArray[Any]) -> list[int]:
    """A class per case by which patients are split alike: for values and masks whether there is any, else -1."""
    if isinstance(task, Task):
        return [int(value) for value in targets.tolist()]
    flat = targets.reshape(len(targets), -1)
    if isinstance(task, Regression):
        return [int(value) for value in np.where(np.isnan(flat[:, 0]), UNKNOWN, flat[:, 0] > task.mean)]
    missing = np.isnan(flat).all(axis=1) if isinstance(task, Multilabel) else (flat < 0).all(axis=1)
    return [int(value) for value in np.where(missing, UNKNOWN, (flat == 1).any(axis=1))]


def _mapped(spec: CohortSpec, key: str, value: str) -> str:
    return spec.label_map.get(key, {}).get(value, value)


def _yes_or_no(spec: CohortSpec, key: str, value: str, where: str) -> float:
    mapped = _mapped(spec, key, value).lower()
    if mapped in MISSING:
        return math.nan
    if mapped not in _YES | _NO:
        raise DataError(
            f"{where} is neither yes nor no, of the label {key!r}.",
            fix="Write yes, no, 1, 0, true or false, leave the cell empty if it is not known, or rename by label_map.",
        )
    return float(mapped in _YES)


def _value(spec: CohortSpec, task: Regression, value: str, where: str) -> float:
    mapped = _mapped(spec, task.name, value)
    if mapped.lower() in MISSING:
        return math.nan
    try:
        number = float(mapped if "_" not in mapped else "")
    except ValueError:
        number = math.inf
    if not math.isfinite(number) or abs(number) > _LARGEST:
        raise DataError(
            f"{where} is no finite number, of task {task.name!r} in {task.unit}.",
            fix="Write the number alone, without its unit, or leave the cell empty.",
        )
    return number
