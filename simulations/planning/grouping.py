"""Who should train together, before anybody does: heads on frozen features, tried on cases that they have not seen.

Sites are put together step by step, the most alike first (`likeness`). Of each partition on the way, every site's cases
are answered by ridge heads solved from its cluster's sums, without the fold of the site's patients that is asked. So
what is compared is what sums of folds would tell a coordinator too, and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal, assert_never

import numpy as np
import torch

from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.seeds import derive
from fedgraft.common.closed_form.closed_form import ridge_head
from fedgraft.common.closed_form.likeness import SiteSums, partitions
from fedgraft.common.metrics.sums.score_histogram import bins_of, ranks, weighted_auroc
from fedgraft.common.metrics.table import TABLE, Metric, headlines, title_with_unit
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task

_FOLDS = 5
_DRAWS = 500
_PENALTIES = (0.1, 1.0, 10.0)
_BATCH = 256
_FEWEST = 10
"""Cases of each of two classes, or of either answer to a label, below which a site's AUROC says nothing; and half of
the values below which their mean error does."""

Partition = tuple[tuple[str, ...], ...]
Verdict = Literal["clusters", "one", "unknown"]


@dataclass(frozen=True)
class SiteCases:
    """A site's labelled training cases through a frozen backbone: features (N, d), targets (N, ...), folds (N,).

    Targets are as a cohort has them (`fedgraft.common.study.tasks`). `patients` (N,) are numbered from 0; each is in
    one fold.
    """

    features: np.ndarray
    targets: np.ndarray
    patients: np.ndarray
    folds: np.ndarray

    def sums(self, task: AnyTask, fold: int | None = None) -> list[SiteSums]:
        """Of all cases, or of one fold: one for each problem that the task's head solves, see `coded`."""
        at = np.ones(len(self.targets), bool) if fold is None else self.folds == fold
        z = self._z()
        return [
            SiteSums(z[at & known].T @ z[at & known], z[at & known].T @ y[at & known])
            for known, y in coded(task, self.targets)
        ]

    def squares(self, task: AnyTask) -> list[np.ndarray]:
        """Of each of these problems the sum of y * y, (outputs,)."""
        return [np.asarray((y[known] ** 2).sum(axis=0)) for known, y in coded(task, self.targets)]

    def likeness(self, task: AnyTask) -> SiteSums:
        """The sums by which sites are compared: class by class, or of all cases where there are no classes."""
        return self.sums(task)[0] if isinstance(task, Task) else SiteSums(self._z().T @ self._z())

    def _z(self) -> np.ndarray:
        return np.hstack([self.features, np.ones((len(self.features), 1))])


def coded(task: AnyTask, targets: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The problems of a task's linear head: which cases are known (N,), and their answers as numbers (N, outputs).

    One of all classes, one for each label (1 or -1), or that of a value in deviations. None for masks.
    """
    match task:
        case Task():
            return [(targets >= 0, np.eye(task.outputs)[np.maximum(targets, 0).astype(int)])]
        case Multilabel():
            columns = [targets[:, at : at + 1].astype(np.float64) for at in range(task.outputs)]
            return [(~np.isnan(one[:, 0]), 2 * np.nan_to_num(one) - 1) for one in columns]
        case Regression():
            y = (targets.astype(np.float64)[:, None] - task.mean) / task.std
            return [(~np.isnan(targets), np.nan_to_num(y))]
        case Segmentation():
            return []
    assert_never(task)


@dataclass(frozen=True)
class Tried:
    """A partition of the sites: the mean figure over sites, and its difference to one model of all, with 95 %."""

    clusters: Partition
    value: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Grouping:
    """What is advised, and all that was tried, from each site by itself to all as one."""

    verdict: Verdict
    clusters: Partition
    tried: tuple[Tried, ...]
    why: str
    metric: str
    """What partitions are tried by, with its unit: AUROC of classes and labels, mean absolute error of values."""


def cases_of(local_model: LocalModel, loader: Loader, task: AnyTask, patients: Sequence[str], seed: int) -> SiteCases:
    """The labelled training cases of a site, and to which fold each patient belongs."""
    at = loader.labelled("train")
    seen, targets = [], []
    local_model.model.eval()
    with torch.inference_mode():
        for batch in loader.batches(in_order(at, _BATCH)):
            seen.append(local_model.model.features(batch.inputs).double().cpu().numpy())
            targets.append(batch.targets[task.name].cpu().numpy())
    found = np.concatenate(targets) if targets else loader.targets(task.name, at).numpy()
    known = np.any([one for one, _ in coded(task, found)], axis=0)
    names = [patients[case] for case in at.tolist()]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    own = np.array([numbers[name] for name in names], int)[known]
    order = np.random.default_rng(seed).permutation(len(numbers))
    return SiteCases(np.concatenate(seen)[known], found[known], own, order[own] % _FOLDS)


def grouping(cases: Mapping[str, SiteCases], task: AnyTask, seed: int) -> Grouping:
    """Which sites should have a model together, or that nobody can tell from frozen features."""
    metric = TABLE[headlines(task)[0]]
    said = title_with_unit(metric, task)
    if few := [site for site, own in cases.items() if _is_few(task, own.targets)]:
        what = "values" if isinstance(task, Regression) else "a class" if isinstance(task, Task) else "an answer"
        fewest = 2 * _FEWEST if isinstance(task, Regression) else _FEWEST
        why = f"{', '.join(few)}: fewer than {fewest} training cases of {what}"
        return Grouping("unknown", (tuple(sorted(cases)),), (), why, said)
    whole = {site: own.sums(task) for site, own in cases.items()}
    parts = {site: [own.sums(task, fold) for fold in range(_FOLDS)] for site, own in cases.items()}
    weights = {site: _draws(own, derive(seed, "patients", site)) for site, own in cases.items()}
    drawn = {
        partition: np.mean([_of_site(task, site, partition, cases, (whole, parts), weights[site]) for site in cases], 0)
        for partition, _ in partitions({site: own.likeness(task) for site, own in cases.items()})
    }
    *_, one = drawn
    tried = tuple(_tried(metric, partition, own, drawn[one]) for partition, own in drawn.items())
    chosen = one
    for partition in reversed(drawn):  # more clusters, each of fewer sites, only where they are surely better
        if np.percentile((drawn[partition] - drawn[chosen])[1:], 2.5) > 0:
            chosen = partition
    best = max(drawn, key=lambda partition: float(drawn[partition][0]))
    if chosen != one:
        why = "they do better than all together, and more clusters not surely so"
        return Grouping("clusters", chosen, tried, why, said)
    if best == one:
        return Grouping("one", one, tried, "no clusters of them do better than all together", said)
    return Grouping("unknown", best, tried, "what is gained may be chance", said)


def _is_few(task: AnyTask, targets: np.ndarray) -> bool:
    """Whether a site's figure would say more of its few cases than of the heads."""
    match task:
        case Task():
            return bool(np.bincount(targets, minlength=task.outputs).min() < _FEWEST)
        case Multilabel():
            return bool(min((targets == answer).sum(axis=0).min() for answer in (0, 1)) < _FEWEST)
        case Regression():
            return len(targets) < 2 * _FEWEST
        case Segmentation():
            return True
    assert_never(task)


def _of_site(
    task: AnyTask,
    site: str,
    partition: Partition,
    cases: Mapping[str, SiteCases],
    sums: tuple[Mapping[str, list[SiteSums]], Mapping[str, list[list[SiteSums]]]],
    weights: np.ndarray,
) -> np.ndarray:
    """How good the answers are to a site's cases of heads of its cluster, each without the fold that it is asked about.

    (draws,), larger is better; `sums` are by site those of all cases, and those of each fold. With the ridge penalty
    that does best there, which is as much in favour of any partition.
    """
    (whole, parts), own = sums, cases[site]
    cluster = next(sites for sites in partition if site in sites)
    totals = [reduce(add, several) for several in zip(*(whole[name] for name in cluster), strict=True)]
    found = []
    for penalty in _PENALTIES:
        scores = [np.zeros((len(own.targets), _crossed(total).shape[1])) for total in totals]
        for fold, part in enumerate(parts[site]):
            at = own.folds == fold
            for score, total, left in zip(scores, totals, part, strict=True):
                weight, bias = ridge_head(total.gram - left.gram, _crossed(total) - _crossed(left), penalty)
                score[at] = own.features[at] @ weight.T + bias
        found.append(_goodness(task, scores, own.targets, weights))
    return max(found, key=lambda values: float(values[0]))


def _crossed(sums: SiteSums) -> np.ndarray:
    assert sums.cross is not None  # those of a head's problem have one
    return sums.cross


def _tried(metric: Metric, partition: Partition, own: np.ndarray, one: np.ndarray) -> Tried:
    sign = metric.goodness(1.0)
    apart = sign * (own - one) + 0.0  # no difference is 0, and not -0
    low, high = np.percentile(apart[1:], (2.5, 97.5)).tolist()
    return Tried(partition, sign * float(own[0]), float(apart[0]), low, high)


def _draws(own: SiteCases, seed: int) -> np.ndarray:
    """How often each case counts, (draws + 1, N): patients drawn with replacement, all once in the first row."""
    count = int(own.patients.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    return np.vstack([np.ones((1, count)), drawn])[:, own.patients]


def _goodness(task: AnyTask, scores: Sequence[np.ndarray], targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each row of weights how good the scores are, one array for each problem: AUROC, or less than no error."""
    match task:
        case Task():
            return _auroc(scores[0], targets, weights)
        case Multilabel():
            known = ~np.isnan(targets)
            each = [
                weighted_auroc(bins_of(score[at, 0]), targets[at, label] == 1, weights[:, at])
                for label, (score, at) in enumerate(zip(scores, known.T, strict=True))
            ]
            return np.asarray(np.nanmean(each, axis=0))
        case Regression():
            error = np.abs(scores[0][:, 0] * task.std + task.mean - targets)
            return np.asarray(-(weights @ error) / weights.sum(axis=1))
        case Segmentation():
            raise AssertionError(task.name)  # it has no linear head
    assert_never(task)


def _auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each row of weights the AUROC of the second of two classes, or the mean over classes against the rest."""
    asked = range(1, 2) if scores.shape[1] == 2 else range(scores.shape[1])
    found = zip(ranks(scores.astype(np.float32)).T, asked, strict=True)
    return np.asarray(np.nanmean([weighted_auroc(bins, labels == c, weights) for bins, c in found], axis=0))
