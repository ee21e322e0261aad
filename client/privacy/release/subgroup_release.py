"""Figures of the test cases by subgroup, as a site's policy lets them out: of no small group, and of none by
subtraction (see `open_groups`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.privacy.release.metric_release_kinds import LEAST, counted
from fedgraft.client.privacy.release.open_groups import Cases, Places, open_groups
from fedgraft.common.metrics.subgroups import named
from fedgraft.common.metrics.sums.task_metrics import TaskSums, sums_of
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import UNKNOWN, AnyTask, Multilabel, Segmentation, Task

Answers = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
Coarsen = Callable[[TaskSums], TaskSums]


@dataclass(frozen=True)
class CaseGroups:
    """Of the cases that are answered for, in their order: by attribute the position of the group, and whose each is.

    `by` has all attributes that policy allows, and what may be shown is judged over all of them. Figures are given of
    those that are `asked` alone.
    """

    by: Mapping[str, Places]
    people: Places
    asked: Collection[str]

    @classmethod
    def of(cls, cohort: Cohort, cases: Tensor, study: Study) -> CaseGroups:
        """Those of a cohort's `cases`, given by position; none where policy allows no attribute of the study."""
        by = {one.name: group[cases].numpy() for one, group in cohort.subgroups.items()}
        patients = [cohort.patients[at] for at in cases.tolist()] if by else []
        asked = [one.name for one in study.evaluate.subgroups if one in cohort.subgroups]
        return cls(by, np.unique(np.array(patients, dtype=str), return_inverse=True)[1], asked)

    def exact(self, answers: Answers, tasks: Mapping[str, AnyTask]) -> dict[str, TaskSums]:
        """Sums by `named` group."""
        return dict(self._released(answers, tasks, by_class=False))

    def coarse(self, answers: Answers, tasks: Mapping[str, AnyTask], coarsen: Coarsen) -> dict[str, TaskSums]:
        """The same for a site that shows no cell below ten: groups with enough people of every class alone."""
        return {name: coarsen(sums) for name, sums in self._released(answers, tasks, by_class=True)}

    def _released(
        self, answers: Answers, tasks: Mapping[str, AnyTask], *, by_class: bool
    ) -> Iterator[tuple[str, TaskSums]]:
        for name, (given, targets) in answers.items() if self.asked else ():
            task = tasks[name]
            questions = list(_strata(task, given, targets, by_class=by_class))
            shown = [open_groups(self.by, self.people, strata, LEAST) for strata in questions]
            for attribute in self.asked:
                group = self.by[attribute]
                told = [set(own[attribute]) for own in shown]
                for at in sorted(set().union(*told)):
                    here = group == at
                    truth = targets[here]
                    if isinstance(task, Multilabel):
                        truth = np.where([at in own for own in told], truth, np.nan)
                    yield named(name, attribute, at), sums_of(task, given[here], truth)


def _strata(
    task: AnyTask, answers: NDArray[Any], targets: NDArray[Any], *, by_class: bool
) -> Iterator[Sequence[Cases]]:
    """By question of a task (each label is one) the sets of cases of which a group must have enough."""
    if isinstance(task, Multilabel):
        for label in range(len(task.labels)):
            own = targets[:, label]
            yield [own == 1, own == 0] if by_class else [~np.isnan(own)]
    elif isinstance(task, Task) and by_class:
        yield [targets == one for one in range(len(task.classes))]
    elif isinstance(task, Segmentation) and not by_class:
        yield [targets != UNKNOWN]
    else:
        yield [counted(task, answers, targets)]
