"""One patient written in several ways: splits go by the id as it is, so that two ids may lie in two splits."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

SIMILAR, ROUNDED = "similar_patient_ids", "rounded_patient_ids"

_DECIMAL = re.compile(r"(\d+)[.,]0+")
_ROUNDED = re.compile(r"\d[.,]\d+E\+?\d{2}", re.IGNORECASE | re.ASCII)
_PARTS = re.compile(r"\d+|[^\W\d_]+")


def similar(patients: Iterable[str]) -> int:
    """How many ids differ from another's in case, separators, leading zeros, or a ".0" behind a number only."""
    ways: dict[tuple[str, ...], set[str]] = {}
    for patient in set(patients):
        if parts := _plain(patient):
            ways.setdefault(parts, set()).add(patient)
    return sum(len(ids) for ids in ways.values() if len(ids) > 1)


def odd_ids(patients: Iterable[str]) -> Counter[str]:
    """What is odd in the ids of cases, by its word: alike ones, and numbers that a spreadsheet has rounded."""
    ids = list(patients)
    return +Counter({SIMILAR: similar(ids), ROUNDED: sum(_ROUNDED.fullmatch(one) is not None for one in ids)})


def _plain(patient: str) -> tuple[str, ...]:
    """Letters and numbers of an id in their order, without what people and programs add to them."""
    text = unicodedata.normalize("NFKC", patient).strip().casefold()
    if number := _DECIMAL.fullmatch(text):
        text = number[1]
    return tuple(part.lstrip("0") or "0" if part.isdigit() else part for part in _PARTS.findall(text))
