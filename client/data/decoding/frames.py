"""What a decoder's process and the one that asks it say to each other: a line of JSON, then the pixels as they are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_HEAD = 8


def write(stream: IO[bytes], words: Mapping[str, Any], frames: Sequence[NDArray[np.float32]] = ()) -> None:
    """Send words and arrays."""
    head = json.dumps({**words, "shapes": [frame.shape for frame in frames]}).encode()
    stream.write(len(head).to_bytes(_HEAD, "big") + head)
    for frame in frames:
        stream.write(np.ascontiguousarray(frame, dtype=np.float32).data)
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], list[NDArray[np.float32]]]:
    """What the other side sent. EOFError if it ended before it had said all."""
    head = json.loads(_exactly(stream, int.from_bytes(_exactly(stream, _HEAD), "big")))
    return head, [_array(stream, shape) for shape in head.pop("shapes")]


def _array(stream: IO[bytes], shape: Sequence[int]) -> NDArray[np.float32]:
    content = _exactly(stream, 4 * math.prod(shape))
    return np.frombuffer(content, dtype=np.float32).reshape(tuple(shape))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content
