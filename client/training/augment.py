"""Random changes of a batch of training images, all drawn from one generator."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.training.model.loader import Batch
from fedgraft.common.study.stages.training import Augment


@dataclass(frozen=True)
class Changes:
    """What is to be done to each image: where its pixels come from (N, 2, 3) if they move, contrast, brightness."""

    theta: Tensor | None
    contrast: Tensor
    brightness: Tensor

    def on(self, images: Tensor) -> Changes:
        """The same in the images' type and where these are; on a GPU without waiting for what is queued there."""

        def sent(numbers: Tensor) -> Tensor:
            pinned = numbers if images.device.type == "cpu" else numbers.pin_memory()
            return pinned.to(images, non_blocking=True)

        theta = None if self.theta is None else sent(self.theta)
        return Changes(theta, sent(self.contrast), sent(self.brightness))

    def of_images(self, images: Tensor) -> Tensor:
        """The images (N, C, H, W), each turned, shifted, flipped and brightened as was drawn for it."""
        shape = (len(images), 1, 1, 1)
        if self.theta is not None:
            # Bilinear weights would smooth the noise away: norm layers then learn statistics that no real image has.
            grid = self._grid(images)
            images = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
            # These are nobody else's: two more batches' memory would cost more than the sums.
            return images.mul_(self.contrast.view(shape)).add_(self.brightness.view(shape))
        return images * self.contrast.view(shape) + self.brightness.view(shape)

    def of_masks(self, masks: Tensor) -> Tensor:
        """Masks (N, H, W), moved as their images are, each pixel that of the nearest."""
        if self.theta is None:
            return masks
        planes = masks[:, None].float()
        moved = F.grid_sample(planes, self._grid(planes), mode="nearest", padding_mode="border", align_corners=False)
        return moved[:, 0].to(masks.dtype)

    def _grid(self, images: Tensor) -> Tensor:
        assert self.theta is not None
        return F.affine_grid(self.theta, list(images.shape), align_corners=False)


def augmented(batch: Batch, spec: Augment, generator: torch.Generator) -> Batch:
    """A batch of which images and masks are changed alike."""
    changes = drawn(len(batch.inputs), spec, generator).on(batch.inputs)
    targets = {task: changes.of_masks(target) if target.ndim == 3 else target for task, target in batch.targets.items()}
    return replace(batch, inputs=changes.of_images(batch.inputs), targets=targets)


def augment(images: Tensor, spec: Augment, generator: torch.Generator) -> Tensor:
    """`images` (N, C, H, W), normalised; each one flipped, shifted, turned and changed in contrast at random.

    Contrast and brightness are in units of the image's normalised values.
    """
    return drawn(len(images), spec, generator).on(images).of_images(images)


def drawn(count: int, spec: Augment, generator: torch.Generator) -> Changes:
    """Random changes of `count` images; the generator lives on the CPU, so that a seed gives the same everywhere."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    mirror = 1 - 2 * (torch.rand(count, generator=generator) < (0.5 if spec.flip else 0.0)).float()
    angle = uniform(math.radians(spec.rotate_deg))
    across, down = uniform(2 * spec.shift), uniform(2 * spec.shift)
    contrast, brightness = 1 + uniform(spec.contrast), uniform(spec.brightness)
    if not (spec.flip or spec.rotate_deg or spec.shift):
        return Changes(None, contrast, brightness)
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos * mirror, -sin, across], 1), torch.stack([sin * mirror, cos, down], 1)]
    return Changes(torch.stack(rows, 1), contrast, brightness)
