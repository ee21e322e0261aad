"""Whose time to an event is counted, and in which bins of time: two tasks of the study, read as survival."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator

from fedgraft.common.base.value import Value, unless
from fedgraft.common.study.tasks import AnyTask, Regression, Task

MOST_BINS, MOST_GROUPS = 512, 8


class Survival(Value):
    """Time and event of each patient, which are tasks of the study, so that sites read them as any label.

    A time counts as the end of its bin, in `(end before, end]`; one beyond the last end is followed to the last end.
    A patient with several cases counts once, by the longest time. Whoever lacks time or event is left out.
    """

    time: Annotated[str, Field(min_length=1)]
    """The task of values (`regression`) that says how long a patient was followed, in its unit."""
    event: Annotated[str, Field(min_length=1)]
    """The task of two classes that says whether the event came (the second class) or the follow-up ended before."""
    ends: Annotated[tuple[float, ...], Field(min_length=1, max_length=MOST_BINS)]
    """Ends of the bins of time, in the unit of `time`, each larger than the one before; public numbers."""
    by: Annotated[str | None, Field(exclude_if=unless(None))] = None
    """A task of classes, each of which gets a curve, or a baseline of its own; one of all patients if absent."""

    @field_validator("ends")
    @classmethod
    def _rise(cls, ends: tuple[float, ...]) -> tuple[float, ...]:
        if ends[0] < 0 or not all(map(math.isfinite, ends)) or any(one >= other for one, other in pairwise(ends)):
            raise ValueError("ends are numbers from 0 on, each larger than the one before")
        return ends

    def groups(self, tasks: Mapping[str, AnyTask]) -> tuple[str, ...]:
        """What the curves are called: the classes of `by`, or "all"."""
        return tasks[self.by].names if self.by is not None else ("all",)

    def faults(self, tasks: Mapping[str, AnyTask]) -> Iterator[str]:
        """Why these tasks say no survival, each with its key."""
        if not isinstance(tasks.get(self.time), Regression):
            yield f"local.survival.time: {self.time} is no task of values (kind: regression) of the study"
        event = tasks.get(self.event)
        if not isinstance(event, Task) or event.outputs != 2:
            yield f"local.survival.event: {self.event} is no task of two classes of the study"
        by = None if self.by is None else tasks.get(self.by)
        if self.by is not None and not (isinstance(by, Task) and by.outputs <= MOST_GROUPS and self.by != self.event):
            yield f"local.survival.by: {self.by} is no other task of at most {MOST_GROUPS} classes of the study"
