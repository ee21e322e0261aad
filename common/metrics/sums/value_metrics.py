"""Mergeable sums for values in a unit: mean absolute error, root mean squared error, and what the mean would reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.sums.more import WithMore
from fedgraft.common.metrics.sums.sum_arrays import (
    agree,
    count,
    exactly,
    ratio,
    total,
)

_KEYS = ("absolute", "squared", "signed", "value", "value_squared")
_SLACK = 1e-6


@dataclass(frozen=True, eq=False)
class ValueSums(WithMore):
    """All that is needed of one task's predicted values, in the task's unit; `+` is exact for `n`.

    `absolute`, `squared` and `signed` are sums of |e|, e^2 and e = predicted - true; `value` and `value_squared` of the
    true values. Of noised sums only `n` and `absolute` are known; the others are NaN.
    """

    n: int
    absolute: float
    squared: float
    signed: float
    value: float
    value_squared: float

    @classmethod
    def zero(cls) -> ValueSums:
        """The sums over no cases: what `+` begins with."""
        return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0)

    @classmethod
    def of(cls, predicted: NDArray[Any], targets: NDArray[Any]) -> ValueSums:
        """Sums over values (N,) and targets (N,); cases whose target is NaN are left out.

        InputError for predictions that are not finite.
        """
        if predicted.shape != targets.shape or targets.ndim != 1:
            raise InputError(f"Metrics of values {predicted.shape} and targets {targets.shape}: shapes do not fit.")
        known = ~np.isnan(targets)
        truth, guess = targets[known].astype(np.float64), predicted[known].astype(np.float64)
        if not np.isfinite(guess).all():
            raise InputError("The model's values are not finite.", fix="Lower the learning rate.")
        error = guess - truth
        return cls(
            len(truth),
            float(np.abs(error).sum()),
            float(error @ error),
            float(error.sum()),
            float(truth.sum()),
            float(truth @ truth),
        )

    def __add__(self, other: ValueSums) -> ValueSums:
        floats = (getattr(self, key) + getattr(other, key) for key in _KEYS)
        return ValueSums(self.n + other.n, *floats)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The sums as arrays (1,) by name, as `from_arrays` takes them."""
        return {"n": np.array([self.n], np.int64)} | {key: np.array([getattr(self, key)]) for key in _KEYS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> ValueSums:
        """From `arrays`, or from the same as lists; InputError for anything that no predictions could have given."""
        exactly(arrays, {"n", *_KEYS}, "values")
        floats = {key: float(total(arrays, key, signed=key in ("signed", "value"))[0]) for key in _KEYS}
        sums = cls(int(count(arrays, "n")[0]), *(floats[key] for key in _KEYS))
        hidden = [math.isnan(floats[key]) for key in _KEYS[1:]]
        if math.isnan(sums.absolute) or any(hidden) != all(hidden):
            raise InputError("Metric sums: what is said to be unknown is not that of values.")
        slack, n = 1 + _SLACK, sums.n
        agree(
            {
                "errors without cases": n == 0
                and any(value != 0 for value in floats.values() if not math.isnan(value)),
                "squared errors": sums.absolute**2 > n * sums.squared * slack + _SLACK,
                "largest errors": sums.squared > sums.absolute**2 * slack + _SLACK,
                "signed errors": abs(sums.signed) > sums.absolute * slack + _SLACK,
                "squared values": sums.value**2 > n * sums.value_squared * slack + _SLACK,
            }
        )
        return sums

    def values(self) -> dict[str, float | None]:
        """The metrics by name, plus `n`: mae, rmse and bias in the unit; r2, 0 for always saying the mean."""
        n = self.n
        spread = self.value_squared - self.value**2 / n if n else math.nan
        r2 = 1 - self.squared / spread if n and spread > 1e-12 * self.value_squared else math.nan
        squared = ratio(self.squared, n)
        return {
            "n": n,
            "mae": ratio(self.absolute, n),
            "rmse": None if squared is None else math.sqrt(squared),
            "bias": ratio(self.signed, n),
            "r2": None if math.isnan(r2) else r2,
        }
