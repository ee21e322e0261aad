"""Sums that leave with Gaussian noise: of features and labels for a closed-form head, of columns for their scale.

**Features.** Of each task, every unit u (a patient, or an image) with known labels gives one row: f, the mean features
of its cases, shortened to norm C if longer, and y, the mean of its one-hot labels, of norm at most 1. With z = [f/C; b]
and b = 1/2,

    gram = sum_u z z',   cross = sum_u z y'.

Adding or removing one unit changes both together by at most, in Frobenius norm,

    sqrt(|z|^4 + |z|^2 |y|^2) <= sqrt((1 + b^2)^2 + (1 + b^2)) = sqrt((1 + b^2)(2 + b^2)),

and T tasks by sqrt(T) times that. Independent noise of sigma times this on every entry is the Gaussian mechanism (see
`noise` for how it is added).
Making the noised gram symmetric afterwards is post-processing; so is undoing C and b. The small b gives the features,
which are many, their share of the bound; the count of rows, which the constant is for, can bear more noise.

**Columns.** Of each numeric column, every unit with a known value gives v, the mean of its known values, each brought
to [-1, 1] by the study's public range and clipped there, and with it the row (b, v, v^2 - b), b = 1/2. Its square is
1/4 + v^2 + (v^2 - 1/2)^2 = 1/2 + v^4 <= 3/2, so that one unit changes the sums of all d columns together by at most
sqrt(3 d / 2). Counts and sums of squares follow from the rows' sums, which is post-processing.

**Survival.** Every patient is in one count of those who left in a bin of time, by the event or without, so that adding
or removing one changes all counts together by 1. An image that comes or goes can move its patient from one count to
another: by sqrt(2). The numbers at risk are sums of these counts, which is post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.client.privacy.dp.noise import noised, widened
from fedgraft.client.privacy.dp.units import units_of
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError
from fedgraft.common.closed_form.survival import EXITS
from fedgraft.common.privacy.accountant import Unit
from fedgraft.common.protocol.instructions import NOISE
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.tasks import Task

Floats = NDArray[np.float64]

CONSTANT = 0.5
"""b, the number in every row that counts it."""


def bound(tasks: int) -> float:
    """The most that one unit changes all sums together, in the units in which noise is added."""
    return math.sqrt(tasks * (1 + CONSTANT**2) * (2 + CONSTANT**2))


def columns_bound(columns: int) -> float:
    """The most that one unit changes the sums of so many columns together, in the units in which noise is added."""
    return math.sqrt(1.5 * columns)


def column_rows(columns: TableInput, values: Floats, units: Sequence[NDArray[np.int64]]) -> Floats:
    """Each unit's rows (units, 3, numeric columns); zeros for a column of which it has no known value.

    `values` (cases, width) are a table's, NaN where one is missing.
    """
    limits = np.array([columns.ranges[name] for name in columns.numeric]).reshape(-1, 2)
    middle, half = limits.mean(axis=1), (limits[:, 1] - limits[:, 0]) / 2
    scaled = np.clip((values[:, : len(middle)] - middle) / half, -1.0, 1.0)
    rows = np.zeros((len(units), 3, len(middle)))
    for at, unit in enumerate(units):
        known = ~np.isnan(scaled[unit])
        counts = known.sum(axis=0)
        mean = np.where(known, scaled[unit], 0.0).sum(axis=0) / np.maximum(counts, 1)
        rows[at] = np.where(counts > 0, [np.full_like(mean, CONSTANT), mean, mean**2 - CONSTANT], 0.0)
    return rows


def noised_columns(
    columns: TableInput, loader: Loader, patients: Sequence[str], private: PrivateSums
) -> dict[str, np.ndarray]:
    """`count`, `sum` and `squares` (width,) of the columns over units, between -1 and 1 of their ranges, with noise.

    `NOISE` (1,) is the variance of the noise in `sum`. Of categories there is nothing in it, and zeros stand for them.
    Noise alone without labels, as with few. InputError for terms that are not private or a range that is not given.
    """
    if private.noise_multiplier is None or not private.noise_multiplier > 0:
        raise InputError("Private sums need noise.")
    if not columns.numeric or not columns.ranges:
        raise InputError("Private sums of columns need their ranges.")
    labelled = loader.labelled("train")
    bound_of = columns_bound(len(columns.numeric))
    deviation = private.noise_multiplier * bound_of
    total = np.zeros((3, len(columns.numeric)))
    if len(labelled):
        (batch,) = loader.batches([labelled])
        rows = column_rows(columns, batch.inputs.double().cpu().numpy(), _units(labelled, patients, private))
        total = rows.sum(axis=0)
    half, mean, square = noised(total, widened(deviation, bound_of, total.size))
    wide = np.zeros((3, columns.width))
    wide[:, : len(columns.numeric)] = half / CONSTANT, mean, square + half
    return dict(zip(("count", "sum", "squares"), wide, strict=True)) | {NOISE: np.array([deviation**2])}


def exits_bound(unit: Unit) -> float:
    """The most that one unit changes the counts of who left when, all together."""
    return 1.0 if unit == "patient" else math.sqrt(2)


def noised_exits(exits: Floats, private: PrivateSums) -> dict[str, np.ndarray]:
    """The counts of patients who left in each bin of time with noise, and `NOISE` (1,), the variance of that.

    InputError for terms that are not private.
    """
    if private.noise_multiplier is None or not private.noise_multiplier > 0:
        raise InputError("Private sums need noise.")
    bound_of = exits_bound(private.unit)
    deviation = private.noise_multiplier * bound_of
    return {EXITS: noised(exits, widened(deviation, bound_of, exits.size)), NOISE: np.array([deviation**2])}


def noised_sums(
    local_model: LocalModel, loader: Loader, patients: Sequence[str], private: PrivateSums
) -> dict[str, np.ndarray]:
    """`TASK/gram` and `TASK/cross` as of `feature_sums`, over units and with noise, and the noise's variance.

    `loader` gives features. `NOISE` (1,) is the variance on the diagonal of the features' part of each gram; those of
    several sites add up. Noise alone without labels, as with few. InputError for a request that is not private.
    """
    if private.noise_multiplier is None or not (private.noise_multiplier > 0 and private.max_norm > 0):
        raise InputError("Private sums need noise and a bound.")
    if any(not isinstance(task, Task) for task in local_model.tasks.values()):
        raise InputError("Private sums know the bound of classes alone.")
    heads = local_model.model.classes
    deviation = private.noise_multiplier * bound(len(heads))
    sums: dict[str, np.ndarray] = {}
    labelled = loader.labelled("train")
    features = np.zeros((0, local_model.model.feature_dim))
    targets = {task: np.zeros(0, dtype=np.int64) for task in heads}
    if len(labelled):
        (batch,) = loader.batches([labelled])
        features = batch.inputs.double().cpu().numpy()
        targets = {task: batch.targets[task].cpu().numpy() for task in heads}
    units = _units(labelled, patients, private)
    back = np.append(np.full(local_model.model.feature_dim, private.max_norm), 1 / CONSTANT)
    wider = widened(deviation, bound(len(heads)), len(back) * sum(len(back) + classes for classes in heads.values()))
    for task, classes in heads.items():
        z, y = _rows(features, targets[task], units, classes, private.max_norm)
        gram, cross = noised(z.T @ z, wider), noised(z.T @ y, wider)
        sums[f"{task}/gram"] = (gram + gram.T) / 2 * np.outer(back, back)
        sums[f"{task}/cross"] = cross * back[:, None]
    sums[NOISE] = np.array([(deviation * private.max_norm**2) ** 2])
    return sums


def _units(labelled: Tensor, patients: Sequence[str], private: PrivateSums) -> list[NDArray[np.int64]]:
    """The positions of each unit's cases among those that are labelled."""
    place = {case: at for at, case in enumerate(labelled.tolist())}
    return [np.array([place[case] for case in own]) for own in units_of(labelled, patients, private.unit)]


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
