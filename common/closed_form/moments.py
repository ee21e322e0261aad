"""Mean and covariance of features from sums over sites, which outlive the stage that released them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedgraft.common.base.errors import RunError
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.states import State

MEAN, COVARIANCE = "mean", "covariance"
"""Names among the moments: (d,) and (d, d), float32."""


@dataclass(frozen=True)
class FeatureMoments(State):
    """Moments of the features of a stage's sites, and the sums over sites that they are from."""

    moments: Arrays
    sums: Arrays

    owner: ClassVar[str] = "moments"
    lasts: ClassVar[bool] = True


def moments_from_sums(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean (d,) and covariance (d, d) of features, from the sums of the task with most cases; RunError below two."""
    grams = [array for name, array in sums.items() if name.endswith("/gram")]
    every = [gram for array in grams for gram in (array if array.ndim == 3 else [array])]  # one for each of many labels
    gram = max(every, key=lambda one: float(one[-1, -1]))
    count = float(gram[-1, -1])
    if count < 2:
        raise RunError("Moments of features need two cases at least.")
    mean = gram[-1, :-1] / count
    covariance = gram[:-1, :-1] / count - np.outer(mean, mean)
    return {MEAN: mean.astype(np.float32), COVARIANCE: covariance.astype(np.float32)}
