"""Numbers in DICOM elements: what is absent is not what is there and cannot be read.

Programs in some languages write a comma into decimal strings ("0,5000"), which means what it says. Anything else that
is no number would be a guess, and a guessed slope gives another picture: such files are refused.
"""

from __future__ import annotations

import math
import re
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from fedgraft.client.data.decoding.unusable import UnusableError

UNREADABLE_ELEMENT = "unreadable_element"

_DECIMAL = re.compile(r"[+-]?(\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
"""1,024 may be one and a bit, or a thousand and more."""


def first(dataset: Dataset, name: str) -> float | None:
    """The first number of an element; None if it is absent or empty. UnusableError: `unreadable_element`."""
    value = dataset.get(name)
    if isinstance(value, list | tuple | MultiValue):
        value = value[0] if len(value) else None
    return _number(value)


def single(dataset: Dataset, name: str) -> float | None:
    """As `first`, of an element that has one value. UnusableError also if it has several that differ."""
    value = dataset.get(name)
    if isinstance(value, list | tuple | MultiValue) and len({_number(part) for part in value}) > 1:
        raise UnusableError(UNREADABLE_ELEMENT)
    return first(dataset, name)


def pair(dataset: Dataset | None, name: str) -> tuple[float, float] | None:
    """The two numbers of an element; None if it is absent, empty, or has another count. UnusableError as `first`."""
    value = dataset.get(name) if dataset is not None else None
    if not isinstance(value, list | tuple | MultiValue) or len(value) != 2:
        if isinstance(value, str | bytes):
            _number(value)
        return None
    one, other = (_number(part) for part in value)
    return None if one is None or other is None else (one, other)


def whole(dataset: Dataset, name: str) -> int | None:
    """The whole number of an element; None if it is absent or empty. UnusableError as `first`."""
    number = single(dataset, name)
    if number is not None and number != int(number):
        raise UnusableError(UNREADABLE_ELEMENT)
    return None if number is None else int(number)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bytes | bytearray):
        value = value.decode("latin-1")
    if isinstance(value, str):
        text = value.strip("\0 ")
        if not text:
            return None
        if not _DECIMAL.fullmatch(text) or _THOUSANDS.fullmatch(text):
            raise UnusableError(UNREADABLE_ELEMENT)
        value = text.replace(",", ".")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UnusableError(UNREADABLE_ELEMENT) from None
    if not math.isfinite(number):
        raise UnusableError(UNREADABLE_ELEMENT)
    return number
