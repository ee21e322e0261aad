"""What a message says in words, as one JSON text: read with bounds, since whoever wrote it is not trusted.

A value is taken only if it is what it should be: no number that is not finite or that no float holds, no key twice, no
name that is long or holds what a terminal obeys, no collection without end. All else is a WireError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fedgraft.common.protocol.bundle import WireError, name_of

LARGEST_TEXT = 1 << 20
"""Characters of a message's words; the largest are a study's."""

_MOST_ENTRIES = 1 << 12
_MOST_COUNT = 1 << 53
"""Whole numbers up to here are exact as floats too."""

_LARGEST_NUMBER = 1e100
_NONCE = re.compile(r"(?:[0-9a-f]{32})?")


def read(text: object) -> dict[str, Any]:
    """The words of a message by name."""
    if not isinstance(text, str) or len(text) > LARGEST_TEXT:
        raise WireError("no words")
    try:
        words = _READER.decode(text)
    except WireError:
        raise
    except (ValueError, RecursionError, MemoryError):
        raise WireError("words are not JSON") from None
    if not isinstance(words, dict):
        raise WireError("words are no mapping")
    return words


def write(words: Mapping[str, Any]) -> str:
    """The same as text. ValueError for a number that is not finite, which nobody would take."""
    return _WRITER.encode(words)


def text(words: Mapping[str, Any], key: str) -> str:
    """A name, or nothing."""
    value = words.get(key)
    return "" if value == "" else name_of(value)


def long_text(words: Mapping[str, Any], key: str) -> bytes:
    """Text of any length and content, as UTF-8."""
    try:
        return str.encode(words[key])
    except (KeyError, TypeError, UnicodeError):
        raise WireError(key) from None


def nonce(words: Mapping[str, Any], key: str) -> str:
    """16 bytes in hexadecimal digits, or nothing."""
    value = text(words, key)
    if not _NONCE.fullmatch(value):
        raise WireError(key)
    return value


def flag(words: Mapping[str, Any], key: str) -> bool:
    """Yes or no."""
    value = words.get(key)
    if not isinstance(value, bool):
        raise WireError(key)
    return value


def count(words: Mapping[str, Any], key: str) -> int:
    """A whole number from 0 on."""
    value = words.get(key)
    if type(value) is not int or not 0 <= value <= _MOST_COUNT:
        raise WireError(key)
    return value


def counts(value: object) -> dict[str, int]:
    """Whole numbers by name."""
    found = mapping(value)
    return {key: count(found, key) for key in found}


def number(value: object) -> float:
    """A finite number."""
    if type(value) not in (int, float) or not abs(value) <= _LARGEST_NUMBER:  # type: ignore[arg-type]
        raise WireError("number")
    return float(value)  # type: ignore[arg-type]


def numbers(value: object) -> dict[str, float]:
    """Finite numbers by name."""
    return {key: number(each) for key, each in mapping(value).items()}


def mapping(value: object) -> dict[str, Any]:
    """Anything by name, not too much of it."""
    if not isinstance(value, dict) or len(value) > _MOST_ENTRIES:
        raise WireError("mapping")
    return {name_of(key): each for key, each in value.items()}


def _no_number(word: str) -> float:
    raise WireError(f"{word} is no JSON")


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise WireError("a key twice")
        found[key] = value
    return found


_READER = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_once)
_WRITER = json.JSONEncoder(allow_nan=False)
"""Made once: every message is read and written by them."""
