"""What a decoder's process and the one that asks it say to each other: a line of JSON, then the numbers as they are.

The numbers of an answer lie in memory that both processes see, where the system has such: a pipe copies them twice, and
gets and gives back a page of the system's for every 4 KB, which took longer than to decode them.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.decoding.shades import Floats, Picture, Shades

_HEAD, _TABLES, _SHARED, _PIPE = 8, "tables", "shared", 1 << 20
_ROOM, _KEPT, _ALIGNED = 64 << 20, 4 << 20, 64
Place = tuple[str, Sequence[int], int]
"""Type and shape of an array, and where it begins."""


class SharedNumbers:
    """Room for the arrays of one answer in memory that both processes see. What does not fit goes by the pipe.

    Nobody can make it smaller or larger: to read where a file has ended ends a process, which must not be the one that
    asks. Whoever reads copies, since the other side could still write.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _ROOM)

    def put(
        self, words: Mapping[str, Any], arrays: Sequence[NDArray[Any]]
    ) -> tuple[Mapping[str, Any], Sequence[NDArray[Any]]]:
        """An answer whose words say where its arrays are; the answer itself if they have no room, or there are none."""
        places: list[Place] = []
        end = 0
        for array in arrays:
            places.append((array.dtype.newbyteorder("=").str, array.shape, end))
            end += -(-array.nbytes // _ALIGNED) * _ALIGNED
        if not 0 < end <= _ROOM:
            return words, arrays
        for place, array in zip(places, arrays, strict=True):
            np.copyto(self._view(place), array, casting="equiv")
        return {**words, _SHARED: places}, ()

    def views(self, places: Sequence[Place]) -> list[NDArray[Any]]:
        """The arrays at these places, as they are in that memory. EOFError for a place outside it."""
        try:
            return [self._view(place) for place in places]
        except ValueError:
            raise EOFError from None

    def _view(self, place: Place) -> NDArray[Any]:
        kind, shape, begin = np.dtype(place[0]), tuple(place[1]), place[2]
        if 0 in shape:
            return np.zeros(shape, kind)
        return np.frombuffer(self._memory, kind, math.prod(shape), begin).reshape(shape)

    def free(self, places: Sequence[Place]) -> None:
        """Give memory back to the system that an unusually large answer took."""
        end = max(begin + np.dtype(kind).itemsize * math.prod(shape) for kind, shape, begin in places)
        if end > _KEPT:
            with contextlib.suppress(OSError, AttributeError):
                self._memory.madvise(mmap.MADV_REMOVE, _KEPT, _ROOM - _KEPT)


def shared_memory() -> int | None:
    """A descriptor for `SharedNumbers`, open here and to be handed on; None where the system has no such memory."""
    try:
        import fcntl

        descriptor = os.memfd_create("fedgraft-decoding", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    except (ImportError, AttributeError, OSError):
        return None
    try:
        os.ftruncate(descriptor, _ROOM)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except (AttributeError, OSError):
        os.close(descriptor)
        return None
    return descriptor


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


def received(
    words: dict[str, Any], arrays: Sequence[NDArray[Any]], shared: SharedNumbers | None
) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """An answer as it was before it was packed and put into shared memory: images of pictures, else arrays.

    Nothing of it is in shared memory any more. EOFError if it is not where the answer says.
    """
    places = words.pop(_SHARED, None)
    if places is None:
        return words, unpacked(words, arrays) if _TABLES in words else list(arrays)
    if shared is None:
        raise EOFError
    views = shared.views(places)
    found = unpacked(words, views) if _TABLES in words else views
    found = [array.copy() if any(array is view for view in views) else array for array in found]
    del views
    shared.free(places)
    return words, found


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
