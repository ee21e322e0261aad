"""What every reader gives: the cases of a file, as plain values. The loop over a cohort's files is `cohorts.scan`.

To read another kind of data, write a class like `Reader` and name it in a line of `fedgraft.client.data.kinds`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.targets import Target
from fedgraft.client.data.tables.words import TableCell
from fedgraft.common.study.inputs import InputSpec
from fedgraft.common.study.tasks import AnyTask


@dataclass(frozen=True)
class Geometry:
    """How large a pixel is: its height over its width, its width in mm, and of a volume the distance of its slices.

    0 mm where it is not known.
    """

    pixel_aspect: float = 1.0
    width_mm: float = 0.0
    slice_mm: float = 0.0


SQUARE = Geometry()


@dataclass(frozen=True)
class Case:
    """One case of a file.

    `values` are an image (H, W) or (H, W, 3) in [0, 1], white high; or a row (width,), NaN where a number is missing. A
    volume would be (D, H, W), its slices in the order of the feet to the head; no study asks for volumes yet.
    """

    values: NDArray[np.float32]
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By `Join` what a labels table may call the case; its file's path is known without."""
    patient: str | None = field(default=None, repr=False)
    """Whose it is: "" if the file should say it and does not, None if such files say nothing."""
    study: str | None = field(default=None, repr=False)
    """The DICOM study, "" if the file does not say it; None for data without such."""
    geometry: Geometry = SQUARE
    targets: Mapping[str, Target] | None = None
    """By task what the file itself says; None if labels come from a table or a folder's name."""
    masks: Mapping[str, NDArray[np.bool_]] | None = None
    """By task where the finding is, of the image's height and width; None if the file itself says nothing."""
    split: TableCell | None = field(default=None, repr=False)
    """The split that the file itself puts it into, with its place; None if it says nothing of splits."""
    row: int | None = None
    """Its row, counted from 0, in a file that holds all cases."""
    tags: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What its file says of sex, age and vendor, by DICOM tag."""
    line: int | None = None
    """The line of that file that the row ends on, as people count it; None if it has no lines."""


@dataclass(frozen=True)
class Contents:
    """What a file gives: cases, and what is odd or worth counting, by constant words."""

    cases: Iterable[Case]
    several: bool = False
    """Whether it holds several images, of which a mask or a file's name could mean any."""
    volume: tuple[int, ...] = ()
    """The shape of the volume that its images are slices of, which its mask must have as well; else empty."""
    problems: Counter[str] = field(default_factory=Counter)
    facts: Mapping[str, str] = field(default_factory=dict)


class Reader(Protocol):
    """Reads the files of one cohort, one after the other; made anew for every scan, so that it may remember them."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec) -> None:
        """DataError if the cohort cannot be read in this way."""

    def read(self, path: Path, name: str) -> Contents:
        """The cases of a file, which is called `name` below the cohort's folder.

        UnusableError with a constant word if it gives none; DataError if the whole cohort must not be used.
        """

    def finish(self) -> Counter[str]:
        """What is odd about all files together, by constant words. DataError as `read`."""


@runtime_checkable
class DecodesAlone(Protocol):
    """A `Reader` in two steps: what decoding gives depends on the file alone, so that several may be at work."""

    def decode(self, path: Path) -> Any:
        """What is in a file; called from any thread, and ahead of its turn. UnusableError as `read`."""

    def contents(self, path: Path, decoded: Any) -> Contents:
        """The cases of a file, from what `decode` gave; in the order of the files. UnusableError as `read`."""


def chosen_slices(volume: NDArray[np.float32], which: Literal["all", "middle", "first"]) -> list[NDArray[np.float32]]:
    """The slices of a volume (D, ...) that `frames` of a cohort asks for."""
    return {"all": list(volume), "middle": [volume[len(volume) // 2]], "first": [volume[0]]}[which]
