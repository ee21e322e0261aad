"""One .npz file as MedMNIST lays it out: train_images, train_labels, val_..., test_..., with its own splits.

Besides images and labels there may be masks (train_masks, ...) and, by the name that `patient_column` gives, whose each
image is. Arrays of volumes, (N, D, H, W), give slices as `frames` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.decoding.decoder import DecodingLimits, decode
from fedgraft.client.data.readers.array_labels import ArrayLabels
from fedgraft.client.data.readers.reader import Case, Contents, chosen_slices
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.words import TableCell
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import InputSpec
from fedgraft.common.study.tasks import AnyTask, Segmentation

SLICED = "volumes_by_slices"
_SPLITS = ("train", "val", "test")
_WHITE: Mapping[str, float] = {"|u1": 255.0, "<u2": 65535.0}


@dataclass(frozen=True)
class _Part:
    """The arrays of one split, as many rows each; None where the file has none."""

    split: str
    images: NDArray[Any]
    labels: NDArray[Any] | None
    masks: NDArray[Any] | None
    patients: Sequence[object] | None


class NpzReader:
    """Reads the arrays of such a file; see `Reader`."""

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask], wanted: InputSpec) -> None:  # noqa: ARG002
        self._spec = spec
        self._labels = ArrayLabels(spec, [task for task in tasks if not isinstance(task, Segmentation)])
        self._mask_tasks = [task.name for task in tasks if isinstance(task, Segmentation)]
        self._problems: Counter[str] = Counter()

    def read(self, path: Path, name: str) -> Contents:  # noqa: ARG002
        """All images, split after split."""
        kinds = ("images", "labels", "masks", *filter(None, [self._spec.patient_column]))
        wanted = {"names": [f"{split}_{kind}" for split in _SPLITS for kind in kinds]}
        limits = DecodingLimits(self._spec.file_seconds, self._spec.file_gigabytes)
        words, arrays = decode("fedgraft.client.data.decoding.npz:read", path, wanted, limits)
        found: dict[str, Any] = dict(zip(words["names"], arrays, strict=True)) | words["texts"]
        parts = [part for split in _SPLITS if (part := self._part(path, split, found)) is not None]
        if not parts:
            raise DataError(
                f"{path}: has no array train_images, val_images or test_images.",
                fix=f"It has: {', '.join(words['there'][:20]) or 'none'}. Rename them as MedMNIST has them.",
            )
        return Contents(self._cases(path, parts))

    def finish(self) -> Counter[str]:
        """Volumes of which slices were taken. DataError with all labels that mean nothing."""
        self._problems.update(self._labels.finish())
        return +self._problems

    def _part(self, path: Path, split: str, found: Mapping[str, Any]) -> _Part | None:
        column = self._spec.patient_column
        images = found.get(f"{split}_images")
        others = {kind: found.get(f"{split}_{kind}") for kind in ("labels", "masks", *filter(None, [column]))}
        if images is None:
            return None
        _check_images(path, f"{split}_images", images)
        for kind, array in others.items():
            if array is not None and len(array) != len(images):
                raise DataError(
                    f"{path}: array '{split}_{kind}' has {len(array):,} rows, and '{split}_images' {len(images):,}."
                )
        if column is not None and others[column] is None:
            raise DataError(
                f"{path}: has no array '{split}_{column}' with the patients.", fix="Leave out `patient_column`."
            )
        if isinstance(others["labels"], list):
            raise DataError(f"{path}: array '{split}_labels' holds text.", fix="MedMNIST's labels are whole numbers.")
        return _Part(split, images, others["labels"], others["masks"], others[column] if column else None)

    def _cases(self, path: Path, parts: Sequence[_Part]) -> Iterator[Case]:
        row = 0
        for part in parts:
            white = _WHITE.get(part.images.dtype.str, 1.0)
            for at, image in enumerate(part.images):
                values = np.asarray(image[..., 0] if image.shape[-1] == 1 else image, np.float32) / np.float32(white)
                planes = [values] if values.shape[2:] in {(), (3,)} else chosen_slices(values, self._spec.frames)
                self._problems[SLICED] += len(planes) < len(values) and values is not planes[0]
                yield from self._slices(path, part, (at, row), planes)
                row += 1

    def _slices(
        self, path: Path, part: _Part, place: tuple[int, int], planes: Sequence[NDArray[np.float32]]
    ) -> Iterator[Case]:
        at, row = place
        label, where = (
            None if part.labels is None else part.labels[at],
            f"{path}, array '{part.split}_labels', row {at}",
        )
        targets = self._labels.of(label, where)
        masks = self._masks(part, at, planes)
        keys = {"path": f"{part.split}/{at:06d}"}
        patient = None if part.patients is None else str(part.patients[at])
        for plane in planes:
            yield Case(
                plane,
                keys,
                patient,
                targets=targets,
                masks=masks,
                split=TableCell(part.split, f"{path}, array '{part.split}_images', row {at}"),
                row=row,
            )

    def _masks(
        self, part: _Part, at: int, planes: Sequence[NDArray[np.float32]]
    ) -> Mapping[str, NDArray[np.bool_]] | None:
        """By task the mask of an image; none of a volume, since nobody can say of which slice it would be."""
        if part.masks is None or len(self._mask_tasks) != 1 or part.masks[at].shape[:2] != planes[0].shape[:2]:
            return None
        return {self._mask_tasks[0]: np.asarray(part.masks[at]).reshape(planes[0].shape[:2]) > 0}


def _check_images(path: Path, name: str, images: NDArray[Any]) -> None:
    """DataError unless these are images of known shades."""
    if not isinstance(images, np.ndarray) or images.ndim not in {3, 4, 5}:
        shape = images.shape if isinstance(images, np.ndarray) else "text"
        raise DataError(
            f"{path}: array {name!r} is of shape {shape}, and images are (N, H, W), (N, H, W, 3), or (N, D, H, W)."
        )
    if images.dtype.str in _WHITE:
        return
    if images.dtype.kind != "f":
        raise DataError(
            f"{path}: array {name!r} is of {images.dtype}, which has no known white.",
            fix="Save it as uint8, uint16, or floats from 0 to 1.",
        )
    for at, image in enumerate(images):
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise DataError(
                f"{path}: array {name!r}, row {at}: has values outside 0 to 1.",
                fix="Divide by the largest possible one.",
            )
