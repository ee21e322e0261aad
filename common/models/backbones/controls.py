"""What a shortcut sees of an image, as backbones without an entry to train: controls that a model must clearly beat."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, cat, nn

_SIDE = 8


class Thumbnail(nn.Module):
    """The image on 8 x 8 pixels: how the body lies, how it was cut out, how bright its parts are."""

    def __init__(self, channels: int, _size: int) -> None:
        super().__init__()
        self.feature_dim = channels * _SIDE**2

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 64 C) of images (N, C, H, W)."""
        return F.adaptive_avg_pool2d(x, _SIDE).flatten(1)


class Intensity(nn.Module):
    """Mean and deviation of each channel: how bright an image is, and how strong its contrast."""

    def __init__(self, channels: int, _size: int) -> None:
        super().__init__()
        self.feature_dim = channels * 2

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 2 C) of images (N, C, H, W)."""
        return cat([x.mean((2, 3)), x.std((2, 3))], dim=1)
