"""Masks of findings: images beside the images, white inside; brought into the model's size as the images are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fedgraft.client.data.cohorts.batches import fitted_shape
from fedgraft.client.data.cohorts.folders import HIDDEN, is_there, walk, within
from fedgraft.client.data.decoding.decoder import DecodingLimits, decode, read_images
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.readers.segmentations import Segmentations
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.tasks import UNKNOWN, AnyTask, Segmentation

SUFFIX = ".png"
OTHER_SIZE, UNREADABLE, WITHOUT_IMAGE = "mask_other_size", "mask_unreadable", "mask_without_image"

Mask = NDArray[np.int8]


class Frame(NamedTuple):
    """Which image of a file it is, whether there are several, and the shape of the volume that they are slices of."""

    number: int
    several: bool
    volume: tuple[int, ...] = ()
    sop: str = ""
    """The DICOM instance that it is of."""


class Masks:
    """The masks of a site by task, looked up by the name of the image's file; counts what cannot be used.

    `masks/a/b.png` is that of `a/b.dcm`. A folder named after a task holds that task's; a study with one task of masks
    may have them in the folder itself. An image without a file there has no known mask; an empty mask says that nothing
    was found.
    """

    def __init__(self, spec: CohortSpec, tasks: Sequence[AnyTask], size: ImageInput) -> None:
        """DataError if the folder is none, or lies where images are looked for."""
        self._spec, self._size = spec, size
        self._volume: tuple[Path, tuple[int, ...], Sequence[NDArray[np.float32]]] = (Path(), (), ())
        self._limits = DecodingLimits(spec.file_seconds, spec.file_gigabytes)
        self._tasks = [task.name for task in tasks if isinstance(task, Segmentation)]
        self._folders = folders(spec, self._tasks)
        self._used: dict[str, set[Path]] = {task: set() for task in self._tasks}
        self._objects = _segmentations(spec, self._tasks, self._limits)
        self.problems: Counter[str] = Counter()

    def of(self, name: str, shape: tuple[int, ...], pixel_aspect: float, frame: Frame) -> dict[str, Mask]:
        """By task the mask (size, size) of the image file `name` of this shape: 1 inside, 0 outside, -1 not known.

        A file of which several frames are used has none, since nobody can say of which frame a mask is, unless the
        masks are volumes as well.
        """
        return {task: self._one(task, name, (shape[:2], pixel_aspect), frame) for task in self._tasks}

    def given(self, masks: Mapping[str, NDArray[np.bool_]], pixel_aspect: float) -> dict[str, Mask]:
        """As `of`, of an image whose own file holds the masks (H, W)."""
        fitted = {task: fit_mask(mask, pixel_aspect, self._size) for task, mask in masks.items()}
        return {task: fitted.get(task, self._none()) for task in self._tasks}

    def finish(self) -> Counter[str]:
        """All that was odd, once every image has been looked up."""
        if self._objects is not None:
            self.problems.update(self._objects.finish())
        for task, folder in self._folders.items():
            found = walk(folder)
            self.problems.update(reason for _, reason in found.passed_over if reason != HIDDEN)
            there = {path for path in found.files if path.name.endswith(self._spec.what.mask_suffixes)}
            if rest := len(there - self._used[task]):
                self.problems[WITHOUT_IMAGE] += rest
        return self.problems

    def _none(self) -> Mask:
        return np.full((self._size.size, self._size.size), UNKNOWN, dtype=np.int8)

    def _one(self, task: str, name: str, of: tuple[tuple[int, ...], float], frame: Frame) -> Mask:
        if self._objects is not None:
            number = frame.number + 1 if frame.several else None
            return self._fitted(self._objects.of(task, frame.sop, number, of[0]), of)
        path = self._path(task, name)
        volumes = SUFFIX not in self._spec.what.mask_suffixes
        if path is None or (frame.several and not volumes):
            return self._none()
        self._used[task].add(path)
        try:
            image = self._slice(path, frame) if volumes else read_images(path, "first", self._limits).frames[0]
        except UnusableError:
            self.problems[UNREADABLE] += 1
            return self._none()
        if image is None:
            self.problems[OTHER_SIZE] += 1
            return self._none()
        return self._fitted((image if image.ndim == 2 else image.max(axis=2)) > 0, of)

    def _fitted(self, inside: NDArray[np.bool_] | None, of: tuple[tuple[int, ...], float]) -> Mask:
        """A mask as the model needs it; that of nothing known if there is none, or it is not of the image's size."""
        if inside is None:
            return self._none()
        if inside.shape != tuple(of[0]):
            self.problems[OTHER_SIZE] += 1
            return self._none()
        return fit_mask(inside, of[1], self._size)

    def _path(self, task: str, name: str) -> Path | None:
        """The file with the mask of an image file; None if there is none. What may not be looked at `finish` counts."""
        folder, suffixes = self._folders.get(task), self._spec.what.mask_suffixes
        if folder is None:
            return None
        ending = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), Path(name).suffix)
        stem = name.removesuffix(name[len(name) - len(ending) :]) if ending else name
        return next((path for suffix in suffixes if is_there(path := folder / f"{stem}{suffix}")), None)

    def _slice(self, path: Path, frame: Frame) -> NDArray[np.float32] | None:
        """The slice of a mask's volume at the place of its image's, None if the volumes differ; kept for the next."""
        if self._volume[0] != path:
            options = {"frames": self._spec.frames, "plane": self._spec.plane, "mask": True}
            words, slices = decode("fedgraft.client.data.decoding.nifti:read", path, options, self._limits)
            self._volume = (path, tuple(words["shape"]), slices)
        return self._volume[2][frame.number] if self._volume[1] == frame.volume else None


def folders(spec: CohortSpec, tasks: Sequence[str]) -> dict[str, Path]:
    """The folder of each task that has one. DataError if the site's folder is none, or lies among the images."""
    if spec.mask_images is None or not tasks:
        return {}
    _demand_apart(spec.mask_images, "mask_images", spec)
    own = {task: spec.mask_images / task for task in tasks if is_there(spec.mask_images / task, folder=True)}
    return own or ({tasks[0]: spec.mask_images} if len(tasks) == 1 else {})


def segmentation_files(spec: CohortSpec, tasks: Sequence[str]) -> list[Path]:
    """The DICOM segmentations of a site, if a task asks for masks. DataError as `folders`."""
    if spec.mask_segmentations is None or not tasks:
        return []
    _demand_apart(spec.mask_segmentations, "mask_segmentations", spec)
    return list(walk(spec.mask_segmentations).files)


def _segmentations(spec: CohortSpec, tasks: Sequence[str], limits: DecodingLimits) -> Segmentations | None:
    paths = segmentation_files(spec, tasks)
    labels = {task: spec.segment_labels.get(task, task) for task in tasks}
    return Segmentations(paths, labels, limits) if paths else None


def _demand_apart(folder: Path, key: str, spec: CohortSpec) -> None:
    if not is_there(folder, folder=True):
        raise DataError(f"{folder}: is no folder.", fix=f"Check `{key}` of the site's cohort.")
    if within(folder, spec.root):
        raise DataError(
            f"{folder}: masks lie in the folder of the images, and would be taken for images.",
            fix="Move them to a folder of their own.",
        )


def fit_mask(inside: NDArray[np.bool_], pixel_aspect: float, spec: ImageInput) -> Mask:
    """A mask (H, W) as `fit` brings its image: (size, size), each pixel that of the nearest; around it is outside."""
    height, width = fitted_shape(inside.shape, pixel_aspect, spec)
    planes = torch.from_numpy(inside.astype(np.float32))[None, None]
    if tuple(inside.shape) != (height, width):
        planes = F.interpolate(planes, (height, width), mode="nearest-exact")
    down, across = spec.size - height, spec.size - width
    planes = F.pad(planes, (across // 2, across - across // 2, down // 2, down - down // 2))
    return np.asarray(planes[0, 0].to(torch.int8).numpy())


def unfit_mask(
    fitted: NDArray[np.uint8], shape: tuple[int, int], pixel_aspect: float, spec: ImageInput
) -> NDArray[np.uint8]:
    """The way back of `fit_mask`: a mask (size, size) as one of the image (H, W), each pixel that of the nearest."""
    height, width = fitted_shape(shape, pixel_aspect, spec)
    top, left = (spec.size - height) // 2, (spec.size - width) // 2
    planes = torch.from_numpy(fitted[top : top + height, left : left + width].astype(np.float32))[None, None]
    return np.asarray(F.interpolate(planes, shape, mode="nearest-exact")[0, 0].to(torch.uint8).numpy())


def fitted_spacing(spacing_mm: float, width: int, fitted_width: int) -> float:
    """Size in mm of a pixel of the fitted image, from that of the original's columns; 0 where it is not known."""
    return spacing_mm * width / fitted_width if spacing_mm > 0 and math.isfinite(spacing_mm) else 0.0
