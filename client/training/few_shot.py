"""A finished model at a site that has few labelled cases: which are used, and what becomes of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np
import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.statistics import feature_sums
from fedgraft.common.base.seeds import derive
from fedgraft.common.closed_form.closed_form import heads_from_sums
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.methods.fit import Fit
from fedgraft.common.study.plan import Gradient, named
from fedgraft.common.study.stages.aggregates import ClosedForm, Ridge
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task


class TooFewShots(Exception):
    """A class has fewer training cases than are asked for: `found` by name, of `wanted` each."""

    def __init__(self, found: Mapping[str, int], wanted: int) -> None:
        super().__init__("a class has fewer training cases than are asked for")
        self.found = found
        self.wanted = wanted

    def words(self) -> str:
        """How many cases each class that lacks some has."""
        return ", ".join(f"{count} of {name}" for name, count in self.found.items())


def shots(cohort: Cohort, task: Task, count: int, seed: int) -> torch.Tensor:
    """So many training cases of each class, by chance; more of them with the same seed contain fewer of them.

    A case's place in the draw follows from its patient alone, so that a patient more or less lets one other case of
    its class slip in or out for each of its own, and all others stay. (So many of each class cannot mean less, so
    this is for fits that never leave the site.) Raises TooFewShots rather than take fewer of any class.
    """
    draws = _draws(cohort, seed)
    own: dict[str, list[int]] = {name: [] for name in task.classes}
    for case in cohort.splits["train"].tolist():
        if (label := int(cohort.targets[task.name][case])) >= 0:
            own[task.classes[label]].append(case)
    if short := {name: len(cases) for name, cases in own.items() if len(cases) < count}:
        raise TooFewShots(short, count)
    drawn = [case for cases in own.values() for case in sorted(cases, key=draws.__getitem__)[:count]]
    return torch.tensor(sorted(drawn), dtype=torch.int64)


def _draws(cohort: Cohort, seed: int) -> dict[int, int]:
    """A number drawn for every case, from its patient and its place among the patient's own."""
    before: Counter[str] = Counter()
    drawn = {}
    for case, patient in enumerate(cohort.patients):
        drawn[case] = derive(seed, "shots", patient, before[patient])
        before[patient] += 1
    return drawn


@dataclass(frozen=True)
class Given:
    """What a site starts from: the model's entries, and the sums over all other sites' cases, if they came with it."""

    state: Arrays
    sums: Mapping[str, np.ndarray] | None


def fitted(
    local_model: LocalModel, cohort: Cohort, study: Study, given: Given, how: Fit, seed: int
) -> dict[str, np.ndarray]:
    """The entries that change when the model is fitted to the cohort's training cases; `local_model` has them.

    Raises TooFewCases, Diverged.
    """
    local_model.load(given.state)
    loader = Loader(cohort, study.input, local_model.device)
    if how.aggregate is not None:
        sums = blended(feature_sums(local_model, loader), given.sums, how.common)
        heads = heads_from_sums(_solvable(sums, study, how.aggregate), how.aggregate, given.state)
        local_model.load(heads)
        return heads
    if how.how == "none":
        return {}
    spec = Gradient(train=named("all"), steps=how.steps, lr=how.lr, batch_size=how.batch_size)
    keys = tuple(given.state)
    local_model.begin(given.state, keys)
    train(local_model, loader, spec, keys, RoundContext(derive(seed, "tune"), 1, 1))
    return local_model.read(keys)


def only(cohort: Cohort, chosen: torch.Tensor) -> Cohort:
    """The cohort with these cases alone to train on."""
    return replace(cohort, splits={**cohort.splits, "train": chosen})


def solves(aggregate: ClosedForm, task: AnyTask) -> bool:
    """Whether sums over features solve the task's head in this way."""
    match task:
        case Task():
            return True
        case Multilabel() | Regression():
            return isinstance(aggregate, Ridge)
        case Segmentation():
            return False
    assert_never(task)


def _solvable(sums: Arrays, study: Study, aggregate: ClosedForm) -> dict[str, np.ndarray]:
    """The sums of tasks with a label for all that they ask, which this aggregation can solve; other heads stay."""
    kept = {}
    for key, array in sums.items():
        task = key.partition("/")[0]
        if solves(aggregate, study.tasks_by_name[task]) and (sums[f"{task}/gram"][..., -1, -1] > 0).all():
            kept[key] = array
    return kept


def blended(own: Arrays, common: Mapping[str, np.ndarray] | None, cases: float) -> dict[str, np.ndarray]:
    """A site's own sums, and those over all sites as if they were of so many cases, by task."""
    sums = dict(own)
    for task in sorted({key.partition("/")[0] for key in own}) if common and cases else ():
        assert common is not None
        total = float(common[f"{task}/gram"][..., -1, -1].max())
        if total > 0:
            sums |= {
                key: array + common[key] * (cases / total) for key, array in own.items() if key.startswith(f"{task}/")
            }
    return sums
