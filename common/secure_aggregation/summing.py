"""What sites put into a masked sum, and what comes out of it: the update of one large site.

A weighted mean needs no weight to be seen: a site puts in weight times entry, and its weight; the quotient of the sums
is the mean. Sums (of features, of columns, of metrics) go in as they are. All that goes in has a shape that the study
alone decides, since a shape that followed the data would tell of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.plugged import asked_of, read_more, values_of
from fedgraft.common.metrics.shown import shown
from fedgraft.common.metrics.subgroups import names_of
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.score_histogram import Counts, ScoreHistogram
from fedgraft.common.metrics.sums.task_metrics import (
    MORE,
    TaskSums,
    add,
    parted,
    sums_from,
    usual,
    zero,
)
from fedgraft.common.metrics.support import support
from fedgraft.common.protocol.instructions import TRUNK, Arrays, Update
from fedgraft.common.protocol.routing import Shapes, Tags
from fedgraft.common.secure_aggregation.masking import FEWEST
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.aggregates import Mean, ServerOptimiser
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask

TENSORS, METRICS = "tensors", "metrics"
"""The two parts of a masked reply; each opens by itself."""

_WEIGHT, _LOSS, _MEANS = "weight:", "loss:", "means"
_SCORES = ("score_keys", "score_counts", "score_rows")


@dataclass(frozen=True)
class Summands:
    """What one site puts into a sum: arrays, and the factors that they are multiplied with on the way in."""

    arrays: Arrays
    factors: Mapping[str, float]


@dataclass(frozen=True)
class Pooled:
    """One task over all sites: sums over all cases, and the mean over sites of the metrics that each worked out."""

    sums: TaskSums
    macro: Mapping[str, float | None]
    """None where fewer than three sites had a value."""
    sites: Mapping[str, int]
    """By metric how many sites the mean is over."""

    def __add__(self, other: Pooled) -> Pooled:
        """Of both groups of sites."""
        parts = {key: [(o.macro[key], o.sites[key]) for o in (self, other)] for key in self.macro}
        known = {key: [(value, n) for value, n in own if value is not None] for key, own in parts.items()}
        count = {key: sum(n for _, n in own) for key, own in known.items()}
        means = {key: sum(v * n for v, n in own) / count[key] if own else None for key, own in known.items()}
        return Pooled(add(self.sums, other.sums), means, count)


def tensor_summands(update: Update, stage: Stage, tags: Tags) -> Summands:
    """What a site puts in for its tensors and weights."""
    if not isinstance(stage.aggregate, Mean | ServerOptimiser):
        return Summands(update.tensors, {})
    weights = {name: _weight(stage.aggregate, weight) for name, weight in update.weights.items()}
    factors = {key: weights[tags[key].task or TRUNK] for key in update.tensors if key in tags}
    totals = {_WEIGHT + name: np.array(weight, np.float64) for name, weight in weights.items()}
    return Summands({**update.tensors, **totals}, factors)


def tensor_shapes(expected: Shapes, study: Study, stage: Stage) -> Shapes:
    """The shapes of `tensor_summands`; `expected` are those of an update in the open."""
    if not isinstance(stage.aggregate, Mean | ServerOptimiser):
        return expected
    weights = {_WEIGHT + name: ((), "float64") for name in (TRUNK, *study.tasks_by_name)}
    return {**expected, **weights}


def pooled_update(sums: Arrays, stage: Stage, tags: Tags, state: Arrays) -> Update:
    """The sums of `tensor_summands` as the update of a site that has all cases.

    Entries that no site gave weight stay as they are in `state`.
    """
    if not isinstance(stage.aggregate, Mean | ServerOptimiser):
        return Update(0, sums, {}, {}, {})
    weights = {key.removeprefix(_WEIGHT): float(total) for key, total in sums.items() if key.startswith(_WEIGHT)}
    tensors = {key: total for key, total in sums.items() if key not in tags and not key.startswith(_WEIGHT)}
    for key in (key for key in sums if key in tags):
        weight, kind = weights[tags[key].task or TRUNK], state[key].dtype
        mean = sums[key] / weight if weight else state[key]
        tensors[key] = (np.rint(mean) if kind.kind in "iu" else mean).astype(kind)
    return Update(0, tensors, weights, {}, {})


def metric_summands(
    sums: Mapping[str, TaskSums], train: Mapping[str, float], floor: int = 0, study: Study | None = None
) -> Summands:
    """What a site puts in for its metrics: its sums, and the metrics themselves, with a count of those it has.

    With fewer cases than `floor` the site's metrics are too few to say, and it has none. Which metrics they are, the
    `study` says; without one they are those that are shown first of each kind.

    The loss of training goes in here too, since only sites that let metrics out are in this sum.
    """
    seen = train.get("examples", 0.0) if "loss" in train else 0.0
    arrays: dict[str, np.ndarray] = {_LOSS: np.array([train.get("loss", 0.0) * seen, seen])}
    groups = {} if study is None else names_of(study)
    for task, own in sums.items():
        plain = {key: array for key, array in own.arrays().items() if key not in _SCORES}
        whole = {key: array if array.dtype.kind == "f" else array.astype(np.int64) for key, array in plain.items()}
        if isinstance(own, ClassificationSums | LabelSums):
            whole["scores"] = own.scores.grid()
        if task in groups:
            arrays |= {f"{task}/{key}": array for key, array in whole.items()}
            continue
        whole |= _of_plugins(own, study, study.tasks_by_name[task]) if study else {}
        values = values_of(own) if support(own).effective >= floor else {}
        told = [values.get(key) for key in (shown(study, task).names if study else usual(own))]
        whole[_MEANS] = np.array([[0.0 if v is None else v, 0.0 if v is None else 1.0] for v in told])
        arrays |= {f"{task}/{key}": array for key, array in whole.items()}
    return Summands(arrays, {})


def _of_plugins(sums: TaskSums, study: Study, task: AnyTask) -> dict[str, np.ndarray]:
    """The sums of plug-ins' metrics, in the shape that the study alone decides."""
    asked = asked_of(study.evaluate.metrics, task)
    return {MORE + one.metric.name: sums.more.get(one.metric.name, np.zeros(one.numbers(task))) for one in asked}


def with_all_groups(sums: Mapping[str, TaskSums], study: Study) -> dict[str, TaskSums]:
    """A site's sums at the end of a study: of the subgroups that it does not show it puts in nothing."""
    return {name: zero(study.tasks_by_name[task]) for name, task in names_of(study).items()} | dict(sums)


def metric_shapes(study: Study, *, by_group: bool = False) -> Shapes:
    """The shapes and types of `metric_summands` for this study, whatever a site has; at its end `by_group` too."""
    sums = {name: zero(task) for name, task in study.tasks_by_name.items()}
    nothing = metric_summands(with_all_groups(sums, study) if by_group else sums, {}, study=study)
    return {key: (array.shape, array.dtype.name) for key, array in nothing.arrays.items()}


def pooled_loss(sums: Arrays) -> dict[str, float]:
    """The mean loss of training over all cases, from the sums of `metric_summands`, and how many those are.

    Nothing if none was trained on.
    """
    loss, seen = sums[_LOSS]
    return {"loss": float(loss / seen), "examples": float(seen)} if seen else {}


def mean_loss(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """What `pooled_loss` gives for both groups of sites, from what it gives for each."""
    if not one or not other:
        return dict(one or other)
    seen = one["examples"] + other["examples"]
    return {"loss": (one["loss"] * one["examples"] + other["loss"] * other["examples"]) / seen, "examples": seen}


def pooled_metrics(sums: Arrays, study: Study) -> dict[str, Pooled]:
    """The sums of `metric_summands` by task, and by subgroup where they are there.

    InputError if no predictions could have given them.
    """
    found = {}
    there = {key.partition("/")[0] for key in sums}
    for name, task in {**{task: task for task in study.tasks_by_name}, **names_of(study)}.items():
        if name not in there:
            continue
        asked = study.tasks_by_name[task]
        own = {key.partition("/")[2]: array for key, array in sums.items() if key.partition("/")[0] == name}
        means, grid = own.pop(_MEANS, None), own.pop("scores", None)
        own, more = parted(own)
        floats = {key for key, array in zero(asked).arrays().items() if array.dtype.kind == "f"}
        plain = {key: array if key in floats else _counts(array) for key, array in own.items()}
        if grid is not None:
            plain |= dict(zip(_SCORES, ScoreHistogram.from_grid(_counts(grid)).arrays(), strict=True))
        if means is None:  # of a subgroup, which has no mean over sites
            found[name] = Pooled(sums_from(asked, plain), {}, {})
            continue
        total, known = means.T
        told = shown(study, task).names
        sites = dict(zip(told, np.rint(known).astype(int).tolist(), strict=True))
        macro = {
            key: float(t / sites[key]) if sites[key] >= FEWEST else None for key, t in zip(told, total, strict=True)
        }
        pooled, names = sums_from(asked, plain), study.evaluate.metrics
        found[name] = Pooled(read_more(names, asked, pooled, more) if names else pooled, macro, sites)
    return found


def _counts(sums: np.ndarray) -> Counts:
    if (sums < 0).any():
        raise InputError("Metric sums: a count is negative.")
    counts: Counts = np.rint(sums).astype(np.int64)
    return counts


def _weight(aggregate: Mean | ServerOptimiser, weight: float) -> float:
    if not math.isfinite(weight) or weight < 0:
        raise ValueError("a weight must be a number from 0 on")
    return float(weight > 0) if aggregate.weight == "equal" else weight
