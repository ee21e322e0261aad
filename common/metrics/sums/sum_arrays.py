"""Metric sums as arrays that came from somewhere else: nothing is taken for granted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import InputError

MOST_CASES = 1 << 40
LARGEST_SUM = 1e60
"""No sum of errors gets near, and no number of such sums overflows."""


def count(arrays: Mapping[str, Any], key: str, shape: tuple[int, ...] = (1,), most: int = MOST_CASES) -> NDArray[Any]:
    """Whole numbers from 0 to `most`, int64; InputError for anything else."""
    array = _shaped(arrays, key, shape)
    if array.dtype.kind not in "iu" or (array.size and (int(array.min()) < 0 or int(array.max()) > most)):
        raise InputError(f"Metric sums: {key} holds what is no count.")
    return array.astype(np.int64)


def total(arrays: Mapping[str, Any], key: str, shape: tuple[int, ...] = (1,), *, signed: bool = False) -> NDArray[Any]:
    """Finite float sums, from 0 on unless `signed`, or NaN for "not known"; InputError for anything else."""
    array = _shaped(arrays, key, shape)
    if array.dtype.kind not in "iuf":
        raise InputError(f"Metric sums: {key} holds {array.dtype}.")
    array = array.astype(np.float64)
    told = array[~np.isnan(array)]
    if not (np.abs(told) <= LARGEST_SUM).all() or (not signed and (told < 0).any()):
        raise InputError(f"Metric sums: {key} holds a value out of range.")
    return array


def exactly(arrays: Mapping[str, Any], keys: set[str], what: str) -> None:
    """InputError unless the arrays are these and no others."""
    if set(arrays) != keys:
        raise InputError(f"Metric sums: keys {sorted(map(str, arrays))} are not those of {what}.")


def agree(faults: Mapping[str, bool]) -> None:
    """InputError that names the first of what is wrong."""
    for name, wrong in faults.items():
        if wrong:
            raise InputError(f"Metric sums: {name} and the number of cases do not agree.")


def ratio(part: float, whole: float) -> float | None:
    """The quotient; None if there is nothing to divide by, or the sum is not known."""
    return float(part / whole) if whole and not math.isnan(part) else None


def _shaped(arrays: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        given = arrays[key]
        # JSON has no NaN: what is not known is null there.
        array = np.asarray(given if isinstance(given, np.ndarray) else _numbers(given))
    except (ValueError, TypeError):
        raise InputError(f"Metric sums: {key} is no array.") from None
    if array.shape != shape:
        raise InputError(f"Metric sums: {key} has shape {array.shape}, not {shape}.")
    return array


def _numbers(given: Any) -> Any:
    if isinstance(given, list):
        return [_numbers(each) for each in given]
    return math.nan if given is None else given
