"""Random changes of a batch of training images, all drawn from one generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.plan import Augment


def augment(images: Tensor, spec: Augment, generator: torch.Generator) -> Tensor:
    """`images` (N, C, H, W), normalised; each one flipped, shifted, turned and changed in contrast at random.

    Contrast and brightness are in units of the image's normalised values. The generator lives on the CPU, so that a
    seed gives the same changes on every device.
    """
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    mirror = 1 - 2 * (torch.rand(count, generator=generator) < (0.5 if spec.flip else 0.0)).float()
    angle = uniform(math.radians(spec.rotate_deg))
    across, down = uniform(2 * spec.shift), uniform(2 * spec.shift)
    contrast, brightness = 1 + uniform(spec.contrast), uniform(spec.brightness)
    if spec.flip or spec.rotate_deg or spec.shift:
        cos, sin = angle.cos(), angle.sin()
        rows = [torch.stack([cos * mirror, -sin, across], 1), torch.stack([sin * mirror, cos, down], 1)]
        theta = torch.stack(rows, 1).to(images)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        # Bilinear weights would smooth the noise away: norm layers then learn statistics that no real image has.
        images = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    shape = (count, 1, 1, 1)
    return images * contrast.view(shape).to(images) + brightness.view(shape).to(images)
