"""Whether a model tells who was in its training: attacks that the hospital can carry out, since it knows the answer.

Two attacks, one score per patient. By loss: whoever the model errs less on was in (Yeom et al. 2018, "Privacy Risk in
Machine Learning"). By likelihood ratio: how unlikely such a confidence log(p / (1 - p)) would be of a patient of that
class who was not in (Carlini et al. 2022, "Membership Inference Attacks From First Principles", offline, with the
site's own held-out patients instead of shadow models). That distribution is fitted on one half of those held out, and
the other half of all patients is scored by it, and the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.metrics.intervals import auroc_interval, wilson
from fedgraft.common.metrics.sums.score_histogram import auroc

FALSE_POSITIVES = 0.01
FEWEST = 20
"""Patients in training, and as many held out, without whom nothing can be said."""
CHANCE_TIMES = 5
"""Members are found if the share of them that is told apart is surely so many times what chance gives."""
Floats = NDArray[np.float64]
_LEAST_SPREAD = 1e-3
_FEWEST_OF_CLASS = 5


@dataclass(frozen=True)
class Patients:
    """One entry per patient: mean loss, the same as confidence, class, whether in training, and which half."""

    loss: Floats
    confidence: Floats
    group: NDArray[np.int64]
    member: NDArray[np.bool_]
    half: NDArray[np.int64]


@dataclass(frozen=True)
class ToldApart:
    """How well members are told: AUC, and the share of them found where at most 1 % of the others are taken for some.

    Intervals are of 95 %: DeLong's, Wilson's of the share, Clopper and Pearson's of the false positives.
    """

    auc: float
    auc_interval: tuple[float, float]
    share: float
    share_interval: tuple[float, float]
    false_positives: float
    false_positives_interval: tuple[float, float]

    @property
    def finds(self) -> bool:
        """Whether the attack surely finds members: at least 5 times as many as chance would."""
        return self.share_interval[0] >= CHANCE_TIMES * FALSE_POSITIVES


def per_patient(
    losses: Sequence[float], groups: Sequence[int], patients: Sequence[str], members: Sequence[bool]
) -> Patients:
    """Cases as patients: losses are averaged, the class is that of the first case. Patients are keyed hashes (hex)."""
    first = {patient: at for at, patient in reversed(list(enumerate(patients)))}
    names = sorted(first)
    place = {name: at for at, name in enumerate(names)}
    where = np.array([place[patient] for patient in patients])
    each = np.asarray(losses, dtype=np.float64)
    counts = np.bincount(where)
    loss = np.bincount(where, each) / counts
    confidence = np.bincount(where, _confidence(each)) / counts
    rows = [first[name] for name in names]
    group = np.asarray(groups, dtype=np.int64)[rows]
    member = np.asarray(members, dtype=np.bool_)[rows]
    # Every other one of each side, in the order of hashes, which says nothing of the patients.
    half = np.where(member, np.cumsum(member), np.cumsum(~member)) % 2
    return Patients(loss, confidence, group, member, half)


def by_loss(patients: Patients) -> Floats:
    """Score of each patient: the higher, the likelier a member."""
    return -patients.loss


def by_likelihood_ratio(patients: Patients) -> Floats:
    """How far a confidence is above that of the held-out, in their deviations; each half as the other one says."""
    scores = np.zeros(len(patients.loss))
    for half in (0, 1):
        held_out, scored = (patients.half != half) & ~patients.member, patients.half == half
        for group in np.unique(patients.group):
            here, alike = scored & (patients.group == group), held_out & (patients.group == group)
            known = patients.confidence[alike if alike.sum() >= _FEWEST_OF_CLASS else held_out]
            if len(known) > 1:
                spread = max(float(known.std(ddof=1)), _LEAST_SPREAD)
                scores[here] = (patients.confidence[here] - known.mean()) / spread
    return scores


def told_apart(scores: Floats, member: NDArray[np.bool_]) -> ToldApart | None:
    """What scores tell; None with fewer than 20 patients on either side."""
    inside, outside = np.sort(scores[member])[::-1], np.sort(scores[~member])[::-1]
    if min(len(inside), len(outside)) < FEWEST:
        return None
    # The highest score of which at most 1 % of the others are above; of few patients nobody may be.
    threshold = outside[math.floor(FALSE_POSITIVES * len(outside))]
    found, wrong = int((inside > threshold).sum()), int((outside > threshold).sum())
    values = np.unique(scores)[::-1]
    both = tuple(np.array([(side == value).sum() for value in values], dtype=np.float64) for side in (inside, outside))
    value, interval = auroc(*both), auroc_interval([(both[0], both[1])])
    share = wilson(found, len(inside))
    assert value is not None
    assert interval is not None
    assert share is not None
    return ToldApart(
        value, interval, found / len(inside), share, wrong / len(outside), _clopper_pearson(wrong, len(outside))
    )


def _confidence(losses: Floats) -> Floats:
    """log(p / (1 - p)) of the probability exp(-loss); of other losses the same function, which keeps their order."""
    bounded = np.clip(losses, 1e-12, 700.0)
    return np.asarray(-(np.log(-np.expm1(-bounded)) + bounded))


def _clopper_pearson(part: int, whole: int) -> tuple[float, float]:
    from scipy.stats import beta  # a second to import, and only an attack's interval needs it

    low = float(beta.ppf(0.025, part, whole - part + 1)) if part else 0.0
    high = float(beta.ppf(0.975, part + 1, whole - part)) if part < whole else 1.0
    return low, high
