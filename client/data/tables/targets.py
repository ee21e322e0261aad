"""Targets of one task as an array: what is known of them, and how a cell of a table becomes one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.words import TableCell, UnknownWords, finite, is_missing, mapped, meant, refuse
from fedgraft.common.study.tasks import (
    UNKNOWN,
    AnyTask,
    Multilabel,
    Regression,
    Segmentation,
    Task,
)

_YES, _NO = frozenset({"1", "yes", "true", "y"}), frozenset({"0", "no", "false", "n"})

NO_LABEL = ("no", "no finding")
"""What a cell for several labels says where a case has none of them."""

BY_OTHERS = "label_by_all_others"
"""Cells that only the entry "all others" of a `label_map` explains: a word that it misspells would be among them."""

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


def plain(target: NDArray[Any]) -> Target:
    """A case's entry of an array of targets, as a plain value."""
    value: Any = target.tolist()
    return tuple(value) if isinstance(value, list) else cast(Target, value)


def columns_of(task: AnyTask) -> tuple[tuple[str, str], ...]:
    """The keys of `label_columns` and `label_map`, and the usual column, of each cell that a target is made of."""
    if isinstance(task, Multilabel):
        return tuple((f"{task.name}.{label}", label) for label in task.labels)
    return () if isinstance(task, Segmentation) else ((task.name, task.name),)


def names_of(task: AnyTask, key: str = "") -> tuple[str, ...]:
    """What a cell of this task can say: a class, yes or no; nothing where it is a number or no cell at all.

    A cell with the key of the task itself has several labels, or says that there is none of them.
    """
    if isinstance(task, Multilabel) and key == task.name:
        return (*task.labels, *NO_LABEL)
    if isinstance(task, Multilabel):
        return (*sorted(_YES), *sorted(_NO))
    return task.classes if isinstance(task, Task) else ()


class LabelReader:
    """Turns cells into targets, and keeps all that could not be read, so that it is told at once by `finish`."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask]) -> None:
        self._spec = spec
        self._by_others = 0
        self._unknown: dict[str, UnknownWords] = {}
        for task in tasks:
            for key in (*(key for key, _ in columns_of(task)), task.name):
                self._unknown[key] = UnknownWords(key, _should_be(task, key), names_of(task, key))

    def of(self, task: AnyTask, cells: Mapping[str, TableCell]) -> Target:
        """A case's target from its cells by key of `columns_of`; unknown for cells that `finish` will refuse."""
        if isinstance(task, Multilabel) and task.name in cells:
            return self._several(task, cells[task.name])
        if isinstance(task, Multilabel):
            return tuple(self._yes_or_no(key, cells[key]) for key, _ in columns_of(task))
        if isinstance(task, Regression):
            return self._value(task, cells[task.name])
        assert isinstance(task, Task)
        return self._class(task, cells[task.name])

    def finish(self) -> Counter[str]:
        """What is odd, by its word. DataError with every word that means nothing, counted, if there are any."""
        refuse(self._unknown.values())
        return +Counter({BY_OTHERS: self._by_others})

    def _mapped(self, key: str, cell: TableCell, is_plain: Callable[[TableCell], bool]) -> TableCell:
        word, by_others = mapped(self._spec, key, cell, is_plain)
        self._by_others += by_others
        return word

    def _class(self, task: Task, cell: TableCell) -> int:
        word = self._mapped(task.name, cell, lambda cell: meant(cell.text, task.classes) is not None)
        if (name := meant(word.text, task.classes)) is not None:
            self._unknown[task.name].read += 1
            return task.classes.index(name)
        self._note(task.name, cell, missing=is_missing(word, self._spec))
        return UNKNOWN

    def _several(self, task: Multilabel, cell: TableCell) -> tuple[float, ...]:
        """The labels whose names stand in a cell, with a separator between them; nothing is known if it is empty.

        A word that `label_map` makes '' says nothing; one that it makes `no` is none of the study's labels.
        """
        names, found, said_none = names_of(task, task.name), set[str](), False
        if is_missing(cell, self._spec) and cell.text not in self._spec.label_map.get(task.name, {}):
            return (math.nan,) * len(task.labels)
        for part in cell.text.split(self._spec.label_separator):
            word = cell._replace(text=part.strip())
            said_none |= meant(word.text, names) in NO_LABEL
            own = self._mapped(task.name, word, lambda word: meant(word.text, names) is not None)
            if (name := meant(own.text, names)) is not None:
                self._unknown[task.name].read += 1
                found.add(name)
            else:
                self._note(task.name, word, missing=is_missing(own, self._spec))
        if said_none and found - set(NO_LABEL):  # a label, and that there is none
            self._note(task.name, cell, missing=False)
        return tuple(float(label in found) if found else math.nan for label in task.labels)

    def _yes_or_no(self, key: str, cell: TableCell) -> float:
        word = self._mapped(key, cell, lambda cell: meant(cell.text, _YES | _NO) is not None)
        if (text := meant(word.text, _YES | _NO)) is not None:
            self._unknown[key].read += 1
            return float(text in _YES)
        self._note(key, cell, missing=is_missing(word, self._spec))
        return math.nan

    def _value(self, task: Regression, cell: TableCell) -> float:
        word = self._mapped(task.name, cell, lambda cell: finite(cell) is not None)
        if is_missing(word, self._spec):
            return math.nan
        if (number := finite(word)) is None:
            self._note(task.name, cell, missing=False)
            return math.nan
        self._unknown[task.name].read += 1
        return number

    def _note(self, key: str, cell: TableCell, *, missing: bool) -> None:
        if not missing:
            self._unknown[key].cells.append(cell)


def _should_be(task: AnyTask, key: str) -> str:
    if isinstance(task, Multilabel) and key == task.name:
        return f"is no label of task {task.name!r}"
    if isinstance(task, Multilabel):
        return f"is neither yes nor no, of the label {key!r}"
    if isinstance(task, Regression):
        return f"is no finite number, of task {task.name!r} in {task.unit}"
    return f"is no class of task {task.name!r}"


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
