"""Whether a found study is what was asked for: an archive may pass over keys that it does not search by (PS3.18)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fedgraft.client.data.pacs.dicomweb import Entry, values

ANY = "*?\\"
"""Letters that stand for others, or between several values."""
_NAMES = ("PatientName", "ReferringPhysicianName")


def fits(entry: Entry, keys: Mapping[str, str]) -> bool:
    """Whether all keys fit, by the elements that an archive must say of what it found (PS3.18, 10.6.3)."""
    return all(_fits(name, wanted, values(entry, name)) for name, wanted in keys.items() if wanted.strip("*"))


def _fits(name: str, wanted: str, found: list[str]) -> bool:
    if name == "ModalitiesInStudy" and not found:  # series are looked through all the same
        return True
    match name:
        case "StudyDate":
            return any(_within(wanted, one, 8) for one in found)
        case "StudyTime":
            return any(_within(wanted, one, 12) for one in found)
        case _ if name in _NAMES:  # archives differ in whether they care for case, and for parts that are empty
            wanted, found = _name(wanted), [_name(one) for one in found]
    patterns = [_pattern(one) for one in wanted.split("\\")]
    return any(pattern.fullmatch(one) for pattern in patterns for one in found)


def _within(wanted: str, found: str, digits: int) -> bool:
    """Whether a date or a time is in a range; one without its last digits is all that begins so."""
    first, dash, last = (part.strip(" :.") for part in wanted.replace(":", "").replace(".", "").partition("-"))
    last, found = last if dash else first, found.replace(":", "").replace(".", "")
    return bool(found) and first <= found.ljust(digits, "0") and (not last or found <= last.ljust(digits, "9"))


def _name(text: str) -> str:
    return text.casefold().rstrip("^= ")


def _pattern(text: str) -> re.Pattern[str]:
    parts = (".*" if letter == "*" else "." if letter == "?" else re.escape(letter) for letter in text)
    return re.compile("".join(parts), re.DOTALL)
