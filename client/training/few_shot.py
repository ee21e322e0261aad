"""A finished model at a site that has few labelled cases: which are used, and what becomes of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
from fedgraft.common.study.aggregates import ClosedForm, Ridge
from fedgraft.common.study.fit import Fit
from fedgraft.common.study.plan import Gradient, named
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task


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

    Raises TooFewShots rather than take fewer of any class.
    """
    indices = cohort.splits["train"].numpy()
    labels = cohort.targets[task.name].numpy()[indices]
    own = {name: indices[labels == at] for at, name in enumerate(task.classes)}
    if short := {name: len(cases) for name, cases in own.items() if len(cases) < count}:
        raise TooFewShots(short, count)
    drawn = [
        np.random.default_rng(derive(seed, "shots", name)).permutation(cases)[:count] for name, cases in own.items()
    ]
    return torch.from_numpy(np.sort(np.concatenate(drawn)))


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


def _solvable(sums: Arrays, study: Study, aggregate: ClosedForm) -> dict[str, np.ndarray]:
    """The sums of tasks with a label for all that they ask, which this aggregation can solve; other heads stay."""
    kept = {}
    for key, array in sums.items():
        task = key.partition("/")[0]
        fits = isinstance(aggregate, Ridge) or isinstance(study.tasks_by_name[task], Task)
        if fits and (sums[f"{task}/gram"][..., -1, -1] > 0).all():
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
