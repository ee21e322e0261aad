"""Tensors of checkpoints on disk: all of them once, then in every round only those that have changed since."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedgraft.common.base.files import load_tensors, save_tensors
from fedgraft.common.protocol.instructions import Arrays, place

_MOST = 0.5
"""If more than this share of the bytes has changed since all were written, all are written again."""


class Snapshots:
    """At most two files: a whole one, and one with what is different now. A frozen backbone is written once.

    Arrays that were given once must not be changed in place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole: dict[str, np.ndarray] = {}
        self._name = ""

    def write(self, name: str, arrays: Arrays) -> list[str]:
        """Put `arrays` on disk; the files that hold them, in the order in which they must be read."""
        new = {key: array for key, array in arrays.items() if not self._has(key, array)}
        changed, total = (sum(array.nbytes for array in some.values()) for some in (new, arrays))
        if not self._name or self._whole.keys() - arrays.keys() or changed > _MOST * total:
            self._whole, self._name, new = dict(arrays), name, dict(arrays)
        elif not new:
            return [self._name]
        save_tensors(self._folder / name, new)
        return list(dict.fromkeys([self._name, name]))

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """What `write` put there. InputError if a file is missing or damaged."""
        parts = [load_tensors(self._folder / name) for name in names]
        self._whole, self._name = dict(parts[0]), names[0]
        return {key: array for part in parts for key, array in part.items()}

    def forget_all_but(self, names: Sequence[str]) -> None:
        """Delete the files of earlier checkpoints."""
        for old in self._folder.glob("*.safetensors"):
            if old.name not in names:
                old.unlink()

    def _has(self, key: str, array: np.ndarray) -> bool:
        """Whether this very array is in the whole file."""
        held = self._whole.get(key)
        return held is not None and held.shape == array.shape and place(held) == place(array)
