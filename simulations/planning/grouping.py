"""Who should train together, before anybody does: heads on frozen features, tried on cases that they have not seen.

Sites are put together step by step, the most alike first (`likeness`). Of each partition on the way, every site's cases
are told apart by ridge heads solved from its cluster's sums, without the fold of the site's patients that is asked. So
what is compared is what sums of folds would tell a coordinator too, and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import numpy as np
import torch

from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.seeds import derive
from fedgraft.common.closed_form.closed_form import ridge_head
from fedgraft.common.closed_form.likeness import SiteSums, partitions
from fedgraft.common.metrics.sums.score_histogram import ranks, weighted_auroc

_FOLDS = 5
_DRAWS = 500
_PENALTIES = (0.1, 1.0, 10.0)
_BATCH = 256
_FEWEST = 10
"""Cases of each of two classes, below which a site's AUROC says nothing."""

Partition = tuple[tuple[str, ...], ...]
Verdict = Literal["clusters", "one", "unknown"]


@dataclass(frozen=True)
class SiteCases:
    """A site's labelled training cases through a frozen backbone: features (N, d), labels (N,), folds (N,).

    `patients` (N,) are numbered from 0; each is in one fold.
    """

    features: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    folds: np.ndarray

    def sums(self, classes: int, fold: int | None = None) -> SiteSums:
        """Of all cases, or of one fold."""
        at = np.ones(len(self.labels), bool) if fold is None else self.folds == fold
        z = np.hstack([self.features[at], np.ones((int(at.sum()), 1))])
        return SiteSums(z.T @ z, z.T @ np.eye(classes)[self.labels[at]])


@dataclass(frozen=True)
class Tried:
    """A partition of the sites: the mean AUROC over sites, and its difference to one model of all, with 95 %."""

    clusters: Partition
    auroc: float
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


def cases_of(local_model: LocalModel, loader: Loader, task: str, patients: Sequence[str], seed: int) -> SiteCases:
    """The labelled training cases of a site, and to which fold each patient belongs."""
    at = loader.labelled("train")
    seen, labels = [], []
    local_model.model.eval()
    with torch.inference_mode():
        for batch in loader.batches(in_order(at, _BATCH)):
            seen.append(local_model.model.features(batch.inputs).double().cpu().numpy())
            labels.append(batch.targets[task].cpu().numpy())
    found = np.concatenate(labels) if labels else np.zeros(0, int)
    known = found >= 0
    names = [patients[case] for case in at.tolist()]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    own = np.array([numbers[name] for name in names], int)[known]
    order = np.random.default_rng(seed).permutation(len(numbers))
    return SiteCases(np.concatenate(seen)[known], found[known], own, order[own] % _FOLDS)


def grouping(cases: Mapping[str, SiteCases], classes: int, seed: int) -> Grouping:
    """Which sites should have a model together, or that nobody can tell from frozen features."""
    if few := [site for site, own in cases.items() if np.bincount(own.labels, minlength=classes).min() < _FEWEST]:
        why = f"{', '.join(few)}: fewer than {_FEWEST} training cases of a class"
        return Grouping("unknown", (tuple(sorted(cases)),), (), why)
    whole = {site: own.sums(classes) for site, own in cases.items()}
    parts = {site: [own.sums(classes, fold) for fold in range(_FOLDS)] for site, own in cases.items()}
    weights = {site: _draws(own, derive(seed, "patients", site)) for site, own in cases.items()}
    drawn = {
        partition: np.mean([_of_site(site, partition, cases, whole, parts, weights[site]) for site in cases], axis=0)
        for partition, _ in partitions(whole)
    }
    *_, one = drawn
    tried = tuple(_tried(partition, own, drawn[one]) for partition, own in drawn.items())
    chosen = one
    for partition in reversed(drawn):  # more clusters, each of fewer sites, only where they are surely better
        if _tried(partition, drawn[partition], drawn[chosen]).low > 0:
            chosen = partition
    best = max(tried, key=lambda found: found.auroc)
    if chosen != one:
        return Grouping("clusters", chosen, tried, "they do better than all together, and more clusters not surely so")
    if best.clusters == one:
        return Grouping("one", one, tried, "no clusters of them do better than all together")
    return Grouping("unknown", best.clusters, tried, "what is gained may be chance")


def _of_site(
    site: str,
    partition: Partition,
    cases: Mapping[str, SiteCases],
    whole: Mapping[str, SiteSums],
    parts: Mapping[str, Sequence[SiteSums]],
    weights: np.ndarray,
) -> np.ndarray:
    """The AUROC of a site's cases under heads of its cluster, each without the fold that it is asked about, (draws,).

    With the ridge penalty that does best there, which is as much in favour of any partition.
    """
    own, cluster = cases[site], next(sites for sites in partition if site in sites)
    total = reduce(add, (whole[name] for name in cluster))
    assert total.cross is not None
    found = []
    for penalty in _PENALTIES:
        scores = np.zeros((len(own.labels), total.cross.shape[1]))
        for fold, part in enumerate(parts[site]):
            assert part.cross is not None
            weight, bias = ridge_head(total.gram - part.gram, total.cross - part.cross, penalty)
            at = own.folds == fold
            scores[at] = own.features[at] @ weight.T + bias
        found.append(_auroc(scores, own.labels, weights))
    return max(found, key=lambda values: float(values[0]))


def _tried(partition: Partition, own: np.ndarray, one: np.ndarray) -> Tried:
    low, high = np.percentile((own - one)[1:], (2.5, 97.5)).tolist()
    return Tried(partition, float(own[0]), float(own[0] - one[0]), low, high)


def _draws(own: SiteCases, seed: int) -> np.ndarray:
    """How often each case counts, (draws + 1, N): patients drawn with replacement, all once in the first row."""
    count = int(own.patients.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    return np.vstack([np.ones((1, count)), drawn])[:, own.patients]


def _auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each row of weights the AUROC of the second of two classes, or the mean over classes against the rest."""
    asked = range(1, 2) if scores.shape[1] == 2 else range(scores.shape[1])
    found = zip(ranks(scores.astype(np.float32)).T, asked, strict=True)
    return np.asarray(np.nanmean([weighted_auroc(bins, labels == c, weights) for bins, c in found], axis=0))
