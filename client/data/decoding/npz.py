"""Arrays of an .npz file: never pickled ones, and none whose header says more than the file holds.

Runs in the process that decodes (see `decoder`).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedgraft.client.data.decoding.unusable import FaultyError, UnusableError

_SUFFIX = ".npy"
_KINDS = "biufU"
"""Numbers, yes or no, text; neither objects nor records nor dates."""


def read(path: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """The arrays that `options["names"]` lists, as far as they are there.

    Words: `names` of the arrays that follow, `texts` of those that hold text, as lists, and `there`, the names of all.
    UnusableError if it is no such file, FaultyError with what is wrong in it.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            there = {one.filename.removesuffix(_SUFFIX): one for one in packed.infolist()}
            wanted = [name for name in options["names"] if name in there]
            found = {name: _array(packed, there[name], name) for name in wanted}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError):
        raise UnusableError("unreadable") from None
    texts = {name: array.tolist() for name, array in found.items() if array.dtype.kind == "U"}
    numbers = {name: array for name, array in found.items() if name not in texts}
    return {"names": list(numbers), "texts": texts, "there": sorted(there)}, list(numbers.values())


def _array(packed: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    try:
        with packed.open(member) as stream:
            version = npy.read_magic(stream)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, kind = header(stream)
    except (ValueError, NotImplementedError):
        raise FaultyError(f"{name!r} is no array that NumPy has written") from None
    if kind.hasobject or kind.kind not in _KINDS:
        raise FaultyError(f"array {name!r} holds Python objects or records, which are never loaded")
    if math.prod(shape) * kind.itemsize > member.file_size:
        raise FaultyError(f"array {name!r} says that its shape is {shape}, and the file holds less")
    with packed.open(member) as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))
