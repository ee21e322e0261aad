"""Updates that came before their turn: many of them wait in files, so that memory does not grow with the sites."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedgraft.common.protocol.instructions import Arrays, Update

MOST_BYTES = 512 << 20
"""So much of them is kept in memory: eleven models of 45 MB."""

_ALIGNED = 64


class OutOfTurn:
    """What each site has sent, until it is taken; None for a site of which nothing counts.

    Files have no name: a process that is killed leaves none. Where there is no room for them, updates stay in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[str, Update | None] = {}
        self._in_memory: dict[str, int] = {}

    def __contains__(self, site: str) -> bool:
        return site in self._waiting

    def put(self, site: str, update: Update | None) -> None:
        """Keep what a site has sent."""
        size = sum(array.nbytes for array in update.tensors.values()) if update is not None else 0
        held = sum(self._in_memory.values())
        if update is not None and size and held and held + size > MOST_BYTES:
            with contextlib.suppress(OSError):
                update, size = replace(update, tensors=_in_a_file(update.tensors, self._folder)), 0
        self._waiting[site], self._in_memory[site] = update, size

    def take(self, site: str) -> Update | None:
        """What a site has sent, which is then forgotten. KeyError if it has not answered."""
        del self._in_memory[site]
        return self._waiting.pop(site)


def _in_a_file(arrays: Arrays, folder: Path) -> dict[str, np.ndarray]:
    """The same arrays, of which nothing is in memory until it is read."""
    places, end = {}, 0
    with tempfile.TemporaryFile(dir=folder) as file:
        for key, array in arrays.items():
            places[key] = end
            file.seek(end)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            end += -(-array.nbytes // _ALIGNED) * _ALIGNED
        file.truncate(end)
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        key: np.frombuffer(held, array.dtype, array.size, places[key]).reshape(array.shape) if array.size else array
        for key, array in arrays.items()
    }
