"""Cohorts of NumPy files: `kind: npy` for folders of .npy arrays, (H, W) or (H, W, 3), of 8-bit shades or from 0 to 1.

What a reader gives is the cases of a file. Labels, masks, splits, patients, and what was left out and why, are the same
as for every other kind of data. The file is decoded in a process of its own, where it may break nothing but itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.decoding.decoder import DecodingLimits, decode
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.kinds import DataKind
from fedgraft.client.data.readers.reader import Case, Contents
from fedgraft.client.data.spec import CohortSpec


class NpyReader:
    """Reads one file after the other; made anew for every scan of a cohort."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[object], wanted: object) -> None:
        self._limits = DecodingLimits(spec.file_seconds, spec.file_gigabytes)

    def read(self, path: Path, name: str) -> Contents:
        """The image in a file. UnusableError with a word that is counted if there is none."""
        if path.suffix != ".npy":
            raise UnusableError("not_an_image")
        _, (shades,) = decode("fedgraft_example.reader:decoded", path, {}, self._limits)
        return Contents([Case(shades)])

    def finish(self) -> Counter[str]:
        """Nothing is odd about several files together."""
        return Counter()


def decoded(path: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """The shades of a file, from 0 to 1. Runs in the process that decodes; what is raised here leaves out the file."""
    values = np.load(path, allow_pickle=False)
    if values.dtype == np.uint8:
        values = values / 255
    if values.dtype.kind != "f" or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise UnusableError("float_outside_0_1")
    return {}, [values.astype(np.float32)]


NPY = DataKind(NpyReader, folder_labels=True)
