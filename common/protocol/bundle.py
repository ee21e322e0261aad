"""Arrays as bytes: which types travel, and many small arrays as one piece. Knows nothing of messages."""

from __future__ import annotations

import json
import math
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from fedgraft.common.protocol.instructions import Arrays

TYPES = {
    np.dtype(name): name for name in ("float32", "float64", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
NAMES = {name: dtype for dtype, name in TYPES.items()}
"""The types of arrays that travel, and back."""

_ALIGN = 8


class WireError(ValueError):
    """A message that is not what it should be."""


def type_that_travels(array: np.ndarray) -> str:
    """The name of an array's type; TypeError if it does not travel."""
    name = TYPES.get(array.dtype)
    if name is None or sys.byteorder != "little":
        raise TypeError(f"arrays of {array.dtype} do not travel on a {sys.byteorder}-endian machine")
    return name


def pack_bundle(arrays: Arrays) -> bytes:
    """Many arrays as one: 4 bytes with the length of a JSON list of name, type and shape, the list, the arrays."""
    index = [(key, type_that_travels(array), array.shape) for key, array in arrays.items()]
    text = json.dumps(index).encode()
    parts = [len(text).to_bytes(4, "little"), text, bytes(-(4 + len(text)) % _ALIGN)]
    for array in arrays.values():
        parts += [array.tobytes(), bytes(-array.nbytes % _ALIGN)]
    return b"".join(parts)


def unpack_bundle(data: memoryview) -> dict[str, np.ndarray]:
    """The arrays of a bundle, as views of it; WireError on garbage."""
    arrays = {}
    length = int.from_bytes(data[:4], "little")
    at = 4 + length + -(4 + length) % _ALIGN
    for key, dtype, shape in _index(bytes(data[4 : 4 + length])):
        count = math.prod(shape)
        if key in arrays or count * dtype.itemsize > len(data) - at:
            raise WireError("bundle with too few bytes, or two arrays of one name")
        arrays[key] = np.frombuffer(data, dtype, count, at).reshape(shape) if count else np.zeros(shape, dtype)
        at += count * dtype.itemsize + -(count * dtype.itemsize) % _ALIGN
    if at != len(data):
        raise WireError("bundle with too many bytes")
    return arrays


@lru_cache(maxsize=64)
def _index(text: bytes) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Names, types and shapes from a bundle's list; kept, since it is the same in every message of a stage."""
    try:
        index = [(key, NAMES[name], tuple(shape)) for key, name, shape in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise WireError("bundle") from None
    if any(not isinstance(key, str) or any(type(n) is not int or n < 0 for n in shape) for key, _, shape in index):
        raise WireError("bundle")
    return index
