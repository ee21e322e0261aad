"""Out-of-distribution detection: how far an image's features are from the training sites' mean, and what is too far.

The Mahalanobis distance under one Gaussian over all classes, its covariance shrunk towards a multiple of one. Lee et
al. 2018 take a mean for each class, Ren et al. 2021 the difference of the two; on phantoms neither did better, and one
Gaussian needs no classes (Kamoi and Kobayashi 2020 found the same).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import (
    digest_arrays,
    load_tensors,
    read_sealed,
    save_tensors,
    sealed,
    write_json,
)
from fedgraft.common.closed_form.moments import COVARIANCE, MEAN, FeatureMoments, moments_from_sums
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import BINS
from fedgraft.common.protocol.states import State, States

SHRINK = 0.05
_EDGES = 2.0 ** np.linspace(-7, 13, BINS - 1)
"""Between bins: a step of 1.4 %. The first and last bin have no end."""
_TENSORS, _FACTS = "moments.safetensors", "moments.json"


def distances(features: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Mahalanobis distances (N,) of features (N, d), over the root of d: 1 or less is usual."""
    from scipy import linalg  # a study is checked without

    dim = len(mean)
    covariance = covariance.astype(np.float64)
    common = max(float(np.trace(covariance)) / dim, 1e-12)
    shrunk = (1 - SHRINK) * covariance + SHRINK * common * np.eye(dim)
    apart = linalg.solve_triangular(linalg.cholesky(shrunk, lower=True), (features - mean).T, lower=True)
    return np.asarray(np.sqrt((apart**2).sum(axis=0) / dim))


def counted(found: np.ndarray) -> np.ndarray:
    """How many distances fall into each bin, (BINS,) as float64, as sums are."""
    return np.bincount(np.searchsorted(_EDGES, found), minlength=BINS).astype(np.float64)


def threshold(counts: np.ndarray, quantile: float) -> float:
    """The distance that a further image like these exceeds with a chance of 1 - quantile at most, from their counts.

    That is the ceil((n + 1) quantile)-th of n distances, up to its bin's upper edge; where that is more than n, the
    largest one, which promises less. InputError if there are none.
    """
    total = round(float(counts.sum()))
    if total < 1:
        raise InputError("No site has a validation image to set a threshold by.", fix="Give split.val a share.")
    rank = min(total, math.ceil((total + 1) * quantile - 1e-9))
    place = int(np.searchsorted(np.cumsum(np.rint(counts)), rank))
    return float(_EDGES[min(place, BINS - 2)])


@dataclass(frozen=True)
class DistanceThreshold(State):
    """From where on an image is out of distribution."""

    facts: Arrays
    """The threshold, its quantile, and how many images it is from; each a single number."""

    owner: ClassVar[str] = "threshold"
    lasts: ClassVar[bool] = True


@dataclass(frozen=True)
class OodModel:
    """What a model's training sites are like: moments of features, and the distance from which an image is foreign."""

    sums: Mapping[str, np.ndarray]
    """Sums of features over all sites, from which a new site's heads can start."""
    threshold: float
    quantile: float
    cases: int
    """Validation images that the threshold is from."""

    @cached_property
    def _moments(self) -> Mapping[str, np.ndarray]:
        return moments_from_sums(self.sums)

    @property
    def mean(self) -> np.ndarray:
        """Mean over the training sites' cases of each feature, (d,)."""
        return self._moments[MEAN]

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the features over the training sites' cases, (d, d), not shrunk."""
        return self._moments[COVARIANCE]

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distances (N,) of features (N, d) from the training sites' mean; compare with `threshold`."""
        return distances(features, self.mean, self.covariance)

    def write(self, folder: Path, model: str) -> None:
        """Put them beside the model with the digest `model`."""
        save_tensors(folder / _TENSORS, self.sums)
        facts = {"threshold": self.threshold, "quantile": self.quantile, "cases": self.cases}
        write_json(folder / _FACTS, sealed({"model": model, "moments": digest_arrays(self.sums), **facts}))

    @classmethod
    def read(cls, folder: Path, model: str) -> OodModel | None:
        """What `write` put beside the model with this digest; None if there is nothing.

        InputError if it is of another model, or damaged.
        """
        if not (folder / _FACTS).is_file():
            return None
        facts, arrays = read_sealed(folder / _FACTS), load_tensors(folder / _TENSORS)
        if facts["model"] != model or facts["moments"] != digest_arrays(arrays):
            raise InputError(
                f"{folder / _FACTS}: is not about the model and the moments beside it.",
                fix="Delete both files to go without flags, or take the run's folder anew.",
            )
        return cls(arrays, float(facts["threshold"]), float(facts["quantile"]), int(facts["cases"]))


def ood_model(states: States) -> OodModel | None:
    """What a run has learnt of its sites' images; None if its plan did not ask."""
    found, moments = states.get("", DistanceThreshold), states.get("", FeatureMoments)
    if found is None or moments is None:
        return None
    value, quantile, cases = (float(found.facts[name]) for name in ("threshold", "quantile", "cases"))
    return OodModel(moments.sums, value, quantile, int(cases))
