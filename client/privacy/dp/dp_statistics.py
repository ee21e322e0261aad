"""Sums of features and labels that leave with Gaussian noise: a closed-form head with differential privacy.

Of each task, every unit u (a patient, or an image) with known labels gives one row: f, the mean features of its cases,
shortened to norm C if longer, and y, the mean of its one-hot labels, of norm at most 1. With z = [f/C; b] and b = 1/2,

    gram = sum_u z z',   cross = sum_u z y'.

Adding or removing one unit changes both together by at most, in Frobenius norm,

    sqrt(|z|^4 + |z|^2 |y|^2) <= sqrt((1 + b^2)^2 + (1 + b^2)) = sqrt((1 + b^2)(2 + b^2)),

and T tasks by sqrt(T) times that. Independent noise of sigma times this on every entry is the Gaussian mechanism.
Making the noised gram symmetric afterwards is post-processing; so is undoing C and b. The small b gives the features,
which are many, their share of the bound; the count of rows, which the constant is for, can bear more noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.privacy.dp import secret
from fedgraft.client.privacy.dp.units import units_of
from fedgraft.client.training.model.errors import TooFewCases
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError
from fedgraft.common.protocol.instructions import NOISE
from fedgraft.common.study.private_sums import PrivateSums
from fedgraft.common.study.tasks import Task

Floats = NDArray[np.float64]

CONSTANT = 0.5
"""b, the last number of every row."""


def bound(tasks: int) -> float:
    """The most that one unit changes all sums together, in the units in which noise is added."""
    return math.sqrt(tasks * (1 + CONSTANT**2) * (2 + CONSTANT**2))


def noised_sums(
    local_model: LocalModel, loader: Loader, patients: Sequence[str], private: PrivateSums
) -> dict[str, np.ndarray]:
    """`TASK/gram` and `TASK/cross` as of `feature_sums`, over units and with noise, and the noise's variance.

    `loader` gives features. `NOISE` (1,) is the variance on the diagonal of the features' part of each gram; those of
    several sites add up. Raises TooFewCases without labels, InputError for a request that is not private.
    """
    if private.noise_multiplier is None or not (private.noise_multiplier > 0 and private.max_norm > 0):
        raise InputError("Private sums need noise and a bound.")
    if any(not isinstance(task, Task) for task in local_model.tasks.values()):
        raise InputError("Private sums know the bound of classes alone.")
    deviation = private.noise_multiplier * bound(len(local_model.model.classes))
    sums: dict[str, np.ndarray] = {}
    labelled = loader.labelled("train")
    if not len(labelled):
        raise TooFewCases
    (batch,) = loader.batches([labelled])
    features = batch.inputs.double().cpu().numpy()
    place = {case: at for at, case in enumerate(labelled.tolist())}
    units = [np.array([place[case] for case in own]) for own in units_of(labelled, patients, private.unit)]
    back = np.append(np.full(local_model.model.feature_dim, private.max_norm), 1 / CONSTANT)
    for task, classes in local_model.model.classes.items():
        target = batch.targets[task].cpu().numpy()
        z, y = _rows(features, target, units, classes, private.max_norm)
        gram, cross = z.T @ z, z.T @ y
        gram = gram + deviation * secret.normal(gram.size).reshape(gram.shape)
        cross = cross + deviation * secret.normal(cross.size).reshape(cross.shape)
        sums[f"{task}/gram"] = (gram + gram.T) / 2 * np.outer(back, back)
        sums[f"{task}/cross"] = cross * back[:, None]
    sums[NOISE] = np.array([(deviation * private.max_norm**2) ** 2])
    return sums


def _rows(
    features: Floats, target: NDArray[np.int64], units: Sequence[NDArray[np.int64]], classes: int, max_norm: float
) -> tuple[Floats, Floats]:
    """The rows z (units, dim + 1) and y (units, classes); zeros for a unit without labels or with broken features."""
    z, y = np.zeros((len(units), features.shape[1] + 1)), np.zeros((len(units), classes))
    for at, unit in enumerate(units):
        known = unit[target[unit] >= 0]
        mean = features[known].mean(axis=0) if len(known) else np.full(features.shape[1], np.nan)
        length = float(np.linalg.norm(mean))
        if not math.isfinite(length):
            continue
        z[at, :-1] = mean / max(max_norm, length)
        z[at, -1] = CONSTANT
        y[at] = np.bincount(target[known], minlength=classes) / len(known)
    return z, y
