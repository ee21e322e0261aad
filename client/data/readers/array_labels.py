"""Labels that stand as numbers in an array: a row for each case."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.targets import LabelReader, Target, unknown
from fedgraft.client.data.tables.words import TableCell, check_words, meant
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task


class ArrayLabels:
    """Rows of numbers to targets of the study's task.

    Of a task with classes a number is the position of its class, from 0, unless the classes are numbers themselves, or
    `label_map` of the cohort says what it means. Of several labels each column is one, in the study's order: 1, 0,
    or -1 for "not known". Of values it is the value.
    """

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask]) -> None:
        """DataError for several tasks: an array has the labels of one."""
        if len(tasks) > 1:
            asked = ", ".join(task.name for task in tasks)
            raise DataError(
                f"{spec.root}: has the labels of one task, and the study asks for {asked}.",
                fix="Ask for one of them.",
            )
        self._task, self._spec = (tasks[0] if tasks else None), spec
        self._reader = LabelReader(spec, tasks)
        if isinstance(self._task, Task):
            check_words(spec, self._task.name, "", self._task.classes)

    def of(self, row: NDArray[Any] | None, where: str) -> Mapping[str, Target]:
        """The target of a case from its row; unknown without one. DataError, with `where`, for what means nothing."""
        if self._task is None:
            return {}
        if row is None:
            return {self._task.name: unknown(self._task)}
        numbers = np.atleast_1d(row)
        return {self._task.name: self._target(self._task, numbers, where)}

    def finish(self) -> Counter[str]:
        """What is odd, by its word. DataError with every number that means nothing."""
        return self._reader.finish()

    def _target(self, task: AnyTask, numbers: NDArray[Any], where: str) -> Target:
        match task:
            case Multilabel():
                if numbers.shape != (len(task.labels),):
                    raise DataError(
                        f"{where}: has {numbers.size} labels, and task {task.name!r} {len(task.labels)}.",
                        fix=f"The study's are {', '.join(task.labels)}.",
                    )
                return tuple(
                    self._yes_or_no(value, f"{where}, column {at}") for at, value in enumerate(numbers.tolist())
                )
            case Regression():
                value = float(_single(numbers, task.name, where))
                return value if math.isfinite(value) else math.nan
            case Task():
                cell = TableCell(_whole(_single(numbers, task.name, where), where), where)
                return self._reader.of(task, {task.name: self._named(task, cell)})
            case Segmentation():
                raise AssertionError("masks are no numbers")
            case _:
                assert_never(task)

    def _named(self, task: Task, cell: TableCell) -> TableCell:
        """A position in the place of its class, where neither `label_map` nor the classes mean the number itself."""
        numbered = any(meant(str(number), task.classes) for number in range(len(task.classes) + 1))
        if self._spec.label_map.get(task.name) or numbered or not cell.text.isdigit():
            return cell
        return cell._replace(text=task.classes[int(cell.text)]) if int(cell.text) < len(task.classes) else cell

    @staticmethod
    def _yes_or_no(value: float, where: str) -> float:
        if value not in {0, 1, -1}:
            raise DataError(f"{where}: is neither 1, 0 nor -1 (not known).")
        return math.nan if value == -1 else float(value)


def _single(numbers: NDArray[Any], task: str, where: str) -> float:
    if numbers.shape != (1,):
        raise DataError(f"{where}: has {numbers.size} numbers, and task {task!r} asks for one.")
    return float(numbers[0])


def _whole(number: float, where: str) -> str:
    if not number.is_integer():
        raise DataError(f"{where}: is no whole number, as that of a class is.")
    return "" if number == -1 else str(int(number))
