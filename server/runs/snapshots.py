"""Tensors of checkpoints on disk: all of them once, then in every round only those that have changed since."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from fedgraft.common.base.files import load_tensors, save_tensors
from fedgraft.common.protocol.instructions import Arrays

_MOST = 0.5
"""If more than this share of the bytes has changed since all were written, all are written again."""


class Snapshots:
    """For each checkpoint a whole file, and one with what is different. A frozen backbone is written once.

    Arrays that were given once must not be changed in place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole: dict[str, np.ndarray] = {}
        self._name = ""
        self._digest = ""

    def write(self, name: str, arrays: Arrays) -> dict[str, str]:
        """Put `arrays` on disk; the files that hold them with their SHA-256, in the order in which to read them."""
        new = {key: array for key, array in arrays.items() if self._whole.get(key) is not array}
        changed, total = (sum(array.nbytes for array in some.values()) for some in (new, arrays))
        if not self._name or self._whole.keys() - arrays.keys() or changed > _MOST * total:
            self._digest = save_tensors(self._folder / name, arrays)
            self._whole, self._name = dict(arrays), name
            return {name: self._digest}
        if not new:
            return {self._name: self._digest}
        return {self._name: self._digest, name: save_tensors(self._folder / name, new)}

    def read(self, files: Mapping[str, str]) -> dict[str, np.ndarray]:
        """What `write` put there, by what it gave. InputError if a file is missing or not as it was written."""
        parts = {name: load_tensors(self._folder / name, digest) for name, digest in files.items()}
        self._name, self._digest = next(iter(files.items()))
        self._whole = dict(parts[self._name])
        return {key: array for part in parts.values() for key, array in part.items()}

    def forget_all_but(self, names: Collection[str]) -> None:
        """Delete the files of earlier checkpoints."""
        for old in self._folder.glob("*.safetensors"):
            if old.name not in names:
                old.unlink()
