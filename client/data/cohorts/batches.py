"""Images between disk and model: one size, compact storage, and back to floats batch by batch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.common.base.environment import give_back
from fedgraft.common.study.inputs import ImageInput, InputSpec, TableInput

_STEPS = 65535
_OFFSET = 32768
_EPS = 1e-6
_BLOCK, _OFTEN = 32 << 20, 16 << 20
"""Bytes. Larger blocks than 32 MB are given to the system as soon as they are free; glibc keeps others at times."""


def fit(image: NDArray[np.float32], pixel_aspect: float, spec: ImageInput) -> NDArray[np.int16]:
    """An image in [0, 1], (H, W) or (H, W, 3), as stored: (channels, size, size) int16.

    Pixels become square, the longer side gets `size` (with anti-aliasing), the rest is black. Colour becomes grey by
    luminance (ITU-R 601) where one channel is asked for; grey is repeated where three are.
    """
    plain = image.dtype == np.float32 and image.flags.c_contiguous and image.flags.writeable
    planes = torch.from_numpy(image if plain else np.array(image, dtype=np.float32))
    planes = planes[None] if planes.ndim == 2 else planes.permute(2, 0, 1)
    if len(planes) != spec.channels:
        luminance = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        planes = (planes * luminance).sum(0, keepdim=True) if len(planes) == 3 else planes.expand(3, -1, -1)
    target = fitted_shape((planes.shape[1], planes.shape[2]), pixel_aspect, spec)
    if tuple(planes.shape[1:]) != target:
        planes = F.interpolate(planes[None], target, mode="bilinear", antialias=True, align_corners=False)[0]
    down, across = spec.size - target[0], spec.size - target[1]
    planes = F.pad(planes, (across // 2, across - across // 2, down // 2, down - down // 2))
    return np.asarray((planes.clamp(0, 1) * _STEPS).round().sub(_OFFSET).to(torch.int16).numpy())


def fit_once(image: NDArray[np.float32], pixel_aspect: float, spec: ImageInput) -> NDArray[np.int16]:
    """As `fit`, but grey stays one channel, (1, size, size), also where the model sees three; see `to_float`."""
    grey = image.ndim == 2 and spec.channels == 3
    return fit(image, pixel_aspect, spec.model_copy(update={"channels": 1}) if grey else spec)


class CaseBlocks:
    """Keeps cases in a few large blocks, each of which goes back to the system when the last of its cases is let go of.

    Of many small pieces of memory nearly none would: between them lies what else is known of their cases.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[tuple[int, ...], np.dtype[Any]], tuple[NDArray[Any], int]] = {}
        self._since = 0

    def kept(self, case: NDArray[Any]) -> NDArray[Any]:
        """A copy of the case in a block of cases like it."""
        kind = case.shape, case.dtype
        block, used = self._open.get(kind, (None, 0))
        if block is None or used == len(block):
            block, used = np.empty((_BLOCK // max(case.nbytes, 1) + 1, *case.shape), case.dtype), 0
        block[used] = case
        self._open[kind] = block, used + 1
        self._since += case.nbytes
        if self._since > _OFTEN:  # what decoding took lies between what is kept, and would add up
            self._since = 0
            give_back()
        return np.asarray(block[used])


def stacked_inputs(inputs: list[NDArray[Any]]) -> NDArray[Any]:
    """The cases in one array; takes them out of the list one by one, so that no two of all of them are in memory.

    That holds for cases of `CaseBlocks`. Grey images among colour are repeated.
    """
    shape = max((case.shape for case in inputs), key=lambda one: one[0])
    whole = np.empty((len(inputs), *shape), inputs[0].dtype)
    for at in range(len(inputs) - 1, -1, -1):
        whole[at] = inputs.pop()
    return whole


def fitted_shape(shape: tuple[int, ...], pixel_aspect: float, spec: ImageInput) -> tuple[int, int]:
    """Height and width within the square that an image (H, W) gets: square pixels, the longer side `size`."""
    height, width = shape[0] * pixel_aspect, float(shape[1])
    scale = spec.size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def to_float(stored: Tensor, spec: InputSpec) -> Tensor:
    """Stored inputs as the model sees them: images normalised as `spec` says, tables as they are (NaN = missing).

    Grey images that are stored once get as many channels as the model sees, on the device where they are.
    """
    if isinstance(spec, TableInput):
        return stored
    if spec.channels == 3 and stored.shape[1] == 1:
        stored = stored.expand(-1, 3, -1, -1)
    images = stored.to(torch.float32, memory_format=torch.contiguous_format).add_(_OFFSET).div_(_STEPS)
    if spec.normalise == "zscore":
        deviation, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True, correction=0)
        return images.sub_(mean).div_(deviation + _EPS)
    mean, std = _constants(spec.mean, images.device), _constants(spec.std, images.device)
    return images.sub_(mean).div_(std)


def floats_of(stored: Tensor, spec: InputSpec) -> int:
    """How many numbers `to_float` makes of stored inputs."""
    if isinstance(spec, ImageInput) and stored.shape[1] < spec.channels:
        return stored.numel() * spec.channels
    return stored.numel()


@lru_cache
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One number per channel, (1, C, 1, 1); kept, since every batch needs them."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)
