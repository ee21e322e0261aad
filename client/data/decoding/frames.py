"""What a decoder's process and the one that asks it say to each other: a line of JSON, then the numbers as they are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_HEAD = 8


def write(stream: IO[bytes], words: Mapping[str, Any], frames: Sequence[NDArray[Any]] = ()) -> None:
    """Send words and arrays of numbers."""
    plain = [np.ascontiguousarray(frame, frame.dtype.newbyteorder("<")) for frame in frames]
    arrays = [(frame.dtype.str, frame.shape) for frame in plain]
    head = json.dumps({**words, "arrays": arrays}).encode()
    stream.write(len(head).to_bytes(_HEAD, "big") + head)
    for frame in plain:
        stream.write(frame.reshape(-1).view(np.uint8).data)
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """What the other side sent. EOFError if it ended before it had said all."""
    head = json.loads(_exactly(stream, int.from_bytes(_exactly(stream, _HEAD), "big")))
    return head, [_array(stream, np.dtype(kind), shape) for kind, shape in head.pop("arrays")]


def _array(stream: IO[bytes], kind: np.dtype[Any], shape: Sequence[int]) -> NDArray[Any]:
    if 0 in shape:
        return np.zeros(tuple(shape), kind)
    content = _exactly(stream, kind.itemsize * math.prod(shape))
    return np.frombuffer(content, dtype=kind).reshape(tuple(shape))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content
