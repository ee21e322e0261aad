"""Arrays as bytes: which types travel, and many small arrays as one piece. Knows nothing of messages.

Whoever sends them is not trusted: what they say of shapes and names is held against bounds before anything is made.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from operator import is_
from typing import Any
from weakref import ref

import numpy as np

from fedgraft.common.protocol.instructions import Arrays

TYPES = {
    np.dtype(name): name for name in ("float32", "float64", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
NAMES = {name: dtype for dtype, name in TYPES.items()}
"""The types of arrays that travel, and back."""

MOST_ARRAYS = 1 << 16
"""So many arrays a message may hold; the largest models here have a few thousand entries."""

_ALIGN = 8
_MOST_DIMENSIONS = 32
_LARGEST_ARRAY = 1 << 40
"""Bytes that an array may have, or would have if its empty dimensions had one place: no shape of a model gets near."""

_LONGEST_NAME = 512
_LARGEST_INDEX = 8 << 20
_ROW = 32
"""About so many characters a row of the list has beside the name."""
_KEPT_INDEX = 1 << 17
"""Longer lists are read anew in every message: what is kept must stay small, whoever wrote it."""


class WireError(ValueError):
    """A message that is not what it should be."""


def type_that_travels(array: np.ndarray) -> str:
    """The name of an array's type; TypeError if it does not travel."""
    name = TYPES.get(array.dtype)
    if name is None or sys.byteorder != "little":
        raise TypeError(f"arrays of {array.dtype} do not travel on a {sys.byteorder}-endian machine")
    return name


def name_of(value: object) -> str:
    """A name as messages have them: short, and nothing in it that a terminal or a file would take for more than text.

    WireError for anything else.
    """
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
        raise WireError("name")
    return value


def form_of(shape: object, dtype: np.dtype[Any]) -> tuple[tuple[int, ...], int]:
    """The shape that somebody says an array has, and how many values it then holds. WireError if it cannot be."""
    if not isinstance(shape, list | tuple) or len(shape) > _MOST_DIMENSIONS:
        raise WireError("shape")
    if any(type(n) is not int or not 0 <= n <= _LARGEST_ARRAY for n in shape):
        raise WireError("shape")
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > _LARGEST_ARRAY:
        raise WireError("shape")
    return tuple(shape), math.prod(shape)


def pack_bundle(arrays: Arrays) -> bytes:
    """Many arrays as one: 4 bytes with the length of a JSON list of name, type and shape, the list, the arrays."""
    index = tuple([(key, type_that_travels(array), array.shape) for key, array in arrays.items()])
    short = _ROW * len(arrays) + sum(map(len, arrays)) <= _KEPT_INDEX
    text = _kept_index_text(index) if short else _index_text(index)
    parts = [len(text).to_bytes(4, "little"), text, bytes(-(4 + len(text)) % _ALIGN)]
    for array in arrays.values():
        parts += [array.tobytes(), bytes(-array.nbytes % _ALIGN)]
    return b"".join(parts)


IndexRows = tuple[tuple[str, str, tuple[int, ...]], ...]


def _index_text(index: IndexRows) -> bytes:
    """The list as bytes."""
    return json.dumps(index).encode()


@lru_cache(maxsize=64)
def _kept_index_text(index: IndexRows) -> bytes:
    """The same, kept, since it is the same in every message of a stage."""
    return _index_text(index)


def unpack_bundle(data: memoryview) -> dict[str, np.ndarray]:
    """The arrays of a bundle, as views of it; WireError on garbage."""
    arrays = {}
    length = int.from_bytes(data[:4], "little")
    if length > min(len(data) - 4, _LARGEST_INDEX):
        raise WireError("bundle")
    text = bytes(data[4 : 4 + length])
    at = 4 + length + -(4 + length) % _ALIGN
    for key, dtype, shape, count in _kept_index(text) if length <= _KEPT_INDEX else _index(text):
        size = count * dtype.itemsize
        if key in arrays or size > len(data) - at:
            raise WireError("bundle with too few bytes, or two arrays of one name")
        arrays[key] = np.frombuffer(data, dtype, count, at).reshape(shape) if count else np.zeros(shape, dtype)
        at += size + -size % _ALIGN
    if at != len(data):
        raise WireError("bundle with too many bytes")
    return arrays


class LastUnpacked:
    """The arrays of the record that was unpacked last, as long as it lives: it is not unpacked again as long as it is
    the very same one, of the very same parts.
    """

    def __init__(self, unpack: Callable[[object], dict[str, np.ndarray]]) -> None:
        self._unpack = unpack
        self._last: tuple[ref[object], dict[str, Any], dict[str, np.ndarray]] | None = None

    def of(self, record: object) -> dict[str, np.ndarray]:
        """The arrays of a record; WireError as `unpack` has it. Nobody may write to what the parts hold."""
        if not isinstance(record, Mapping):
            return self._unpack(record)
        last, parts = self._last, dict(record)
        if last is None or last[0]() is not record or not _same(last[1], parts):
            last = self._last = ref(record, self._gone), parts, self._unpack(record)
        return dict(last[2])

    def _gone(self, record: ref[object]) -> None:
        if self._last is not None and self._last[0] is record:
            self._last = None


def _same(parts: Mapping[str, object], others: Mapping[str, object]) -> bool:
    return list(parts) == list(others) and all(map(is_, parts.values(), others.values()))


Index = list[tuple[str, np.dtype[Any], tuple[int, ...], int]]
"""Names, types, shapes and numbers of values."""


def _index(text: bytes) -> Index:
    """What a bundle's list says; WireError if it is none."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        raise WireError("bundle") from None
    if not isinstance(rows, list) or len(rows) > MOST_ARRAYS:
        raise WireError("bundle")
    return [_row(row) for row in rows]


def _row(row: object) -> tuple[str, np.dtype[Any], tuple[int, ...], int]:
    if not isinstance(row, list) or len(row) != 3 or not isinstance(row[1], str) or row[1] not in NAMES:
        raise WireError("bundle")
    dtype = NAMES[row[1]]
    return name_of(row[0]), dtype, *form_of(row[2], dtype)


@lru_cache(maxsize=64)
def _kept_index(text: bytes) -> Index:
    """The same, kept, since it is the same in every message of a stage."""
    return _index(text)
