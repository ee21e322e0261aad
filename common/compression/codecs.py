"""One array of float32 as arrays of fewer bytes, and back: what is read is finite, or it is refused.

bf16  the upper half of each number's bits, rounded to even
int8  with s_b = max|x_b| / 127 in each block b of 256 numbers: rint(x / s_b), and s_b
topk  places and bf16 values of the k = ceil(share n) largest |x|
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.stages.compression import Compression

Floats = NDArray[np.float32]
Form = tuple[tuple[int, ...], str]
BLOCK = 256
_STEPS = 127


class CompressionError(ValueError):
    """Arrays that nobody can have written."""


@dataclass(frozen=True)
class Codec:
    """One kind: `write` takes numbers in a row, `read` gives as many back; `forms` are those of what is written."""

    write: Callable[[Floats, Compression], dict[str, np.ndarray]]
    read: Callable[[Arrays, int, Compression], Floats]
    forms: Callable[[int, Compression], Mapping[str, Form]]


def _bits(values: Floats) -> NDArray[np.uint16]:
    """bfloat16, rounded to the nearest, to even where two are."""
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (words + (0x7FFF + ((words >> 16) & 1)).astype(np.uint32)) >> 16
    return rounded.astype(np.uint16)


def _values(bits: np.ndarray) -> Floats:
    return _finite((bits.astype(np.uint32) << 16).view(np.float32))


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise CompressionError("a number that is none")
    return values


def _write_int8(values: Floats, _: Compression) -> dict[str, np.ndarray]:
    blocks = np.zeros((_blocks(len(values)), BLOCK), np.float32)
    blocks.reshape(-1)[: len(values)] = values
    scales = np.abs(blocks).max(axis=1, initial=0) / np.float32(_STEPS)
    steps = np.rint(blocks / np.where(scales > 0, scales, 1)[:, None]).clip(-_STEPS, _STEPS)
    return {"steps": steps.astype(np.int8).view(np.uint8).reshape(-1)[: len(values)], "scales": scales}


def _read_int8(arrays: Arrays, count: int, _: Compression) -> Floats:
    scales = _finite(arrays["scales"])
    if (scales < 0).any():
        raise CompressionError("a scale below 0")
    steps = np.zeros(len(scales) * BLOCK, np.float32)
    steps[:count] = arrays["steps"].view(np.int8)
    with np.errstate(over="ignore"):
        return _finite((steps.reshape(-1, BLOCK) * scales[:, None]).reshape(-1)[:count])


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _write_topk(values: Floats, how: Compression) -> dict[str, np.ndarray]:
    largest = np.argpartition(-np.abs(values), _most(len(values), how) - 1)[: _most(len(values), how)]
    places = np.sort(largest).astype(np.uint32)
    return {"places": places, "bits": _bits(values[places])}


def _read_topk(arrays: Arrays, count: int, _: Compression) -> Floats:
    places = arrays["places"].astype(np.int64)
    if len(places) and (places[-1] >= count or (np.diff(places) <= 0).any()):
        raise CompressionError("places that are not there, or not in order")
    values = np.zeros(count, np.float32)
    values[places] = _values(arrays["bits"])
    return values


def _most(count: int, how: Compression) -> int:
    return max(1, math.ceil(how.share * count))


CODECS: Mapping[str, Codec] = {
    "bf16": Codec(
        lambda values, _: {"bits": _bits(values)},
        lambda arrays, _, __: _values(arrays["bits"]),
        lambda count, _: {"bits": ((count,), "uint16")},
    ),
    "int8": Codec(
        _write_int8,
        _read_int8,
        lambda count, _: {"steps": ((count,), "uint8"), "scales": ((_blocks(count),), "float32")},
    ),
    "topk": Codec(
        _write_topk,
        _read_topk,
        lambda count, how: {"places": ((_most(count, how),), "uint32"), "bits": ((_most(count, how),), "uint16")},
    ),
}
