"""Masks from DICOM segmentations, joined with images by the SOP instance UID that they refer to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.decoding.decoder import DecodingLimits, decode
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.common.base.errors import DataError

_READ = "fedgraft.client.data.decoding.dicom.segmentation:read"
UNREADABLE, WITHOUT_IMAGE, TWICE, OF_FRAMES = "mask_unreadable", "mask_without_image", "mask_twice", "mask_of_frames"
Drawn = NDArray[np.bool_]


class Segmentations:
    """All segmentations of a cohort; counts what cannot be used. `labels` are those of the segments, by task.

    An image that a segmentation refers to, and on which it draws nothing of a segment, has an empty mask of it; one
    that none refers to has none. Two that differ on an image say nothing of it.
    """

    def __init__(self, paths: Iterable[Path], labels: Mapping[str, str], limits: DecodingLimits) -> None:
        """DataError if no segment has the label of a task."""
        self._labels = {task: _plain(label) for task, label in labels.items()}
        self._drawn: dict[tuple[str, str], dict[int, list[Drawn]]] = defaultdict(dict)
        self._covered: set[tuple[str, str]] = set()
        self._used: set[str] = set()
        self.problems: Counter[str] = Counter()
        there: set[str] = set()
        for path in paths:
            try:
                words, masks = decode(_READ, path, {}, limits)
            except UnusableError:
                self.problems[UNREADABLE] += 1
                continue
            there |= set(words["labels"])
            self.problems[WITHOUT_IMAGE] += words["unplaced"]
            self._covered |= {(sop, _plain(label)) for sop in words["covered"] for label in words["labels"]}
            for (sop, frame, label), mask in zip(words["keys"], masks, strict=True):
                self._drawn[sop, _plain(label)].setdefault(frame, []).append(mask > 0)
        known = {_plain(label) for label in there}
        if there and (lacking := [task for task, label in self._labels.items() if label not in known]):
            listed = ", ".join(sorted(there))
            raise DataError(
                f"mask_segmentations: no segment is called {labels[lacking[0]]!r}; there are: {listed}.",
                fix=f"Say which one is {lacking[0]} by `segment_labels` of the site's cohort.",
            )

    def of(self, task: str, sop: str, frame: int | None, shape: tuple[int, ...]) -> Drawn | None:
        """The mask of an image; None if it is not known.

        `frame` is its number in its file, counted from 1, if all frames are used; None if the file gives one image.
        """
        key = (sop, self._labels[task])
        if not sop or (key not in self._drawn and key not in self._covered):
            return None
        self._used.add(sop)
        by_frame = self._drawn.get(key, {})
        if frame is None and by_frame and set(by_frame) not in ({0}, {1}):
            self.problems[OF_FRAMES] += 1  # of which of them the image is, nobody says
            return None
        masks = by_frame.get(0) or (next(iter(by_frame.values()), []) if frame is None else by_frame.get(frame, []))
        if any(not np.array_equal(mask, masks[0]) for mask in masks[1:]):
            self.problems[TWICE] += 1
            return None
        return masks[0] if masks else np.zeros(shape, dtype=np.bool_)

    def finish(self) -> Counter[str]:
        """All that was odd, once every image has been looked up."""
        wanted = set(self._labels.values())
        rest = {sop for sop, label in self._drawn if label in wanted} - self._used
        return +(self.problems + Counter({WITHOUT_IMAGE: len(rest)}))


def _plain(label: str) -> str:
    return label.strip().casefold()
