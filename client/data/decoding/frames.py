"""What a decoder's process and the one that asks it say to each other: a line of JSON, then the numbers as they are."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.decoding.shades import Floats, Picture, Shades

_HEAD, _TABLES, _PIPE = 8, "tables", 1 << 20


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


def packed(words: Mapping[str, Any], pictures: Sequence[Picture]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Pictures as arrays: the stored values of an image are fewer bytes than the image."""
    arrays: list[NDArray[Any]] = []
    for picture in pictures:
        arrays += [picture.table, picture.entries] if isinstance(picture, Shades) else [picture]
    return {**words, _TABLES: [isinstance(picture, Shades) for picture in pictures]}, arrays


def unpacked(words: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> list[Floats]:
    """The images of pictures that were packed; takes out of the words how they were."""
    left = iter(arrays)
    return [Shades(next(left), next(left)).image() if table else next(left) for table in words.pop(_TABLES)]


def widen(pipe: IO[bytes]) -> None:
    """Let a pipe hold an image and not 64 KB, where the system can."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)


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
