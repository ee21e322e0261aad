"""A light decoder in the manner of U-Net: from a backbone's feature maps to a logit for every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDEST, _LAST = 32, 8
_RARE = -2.0
"""The logit to start from: few pixels lie inside a finding."""


class Decoder(nn.Module):
    """Ronneberger et al. 2015, "U-Net", with one convolution per resolution, the image itself as the finest map.

    Group norm ties no images together and keeps no statistics, so that sites with few masks do not spoil those of all.
    """

    def __init__(self, maps: Sequence[int], channels: int) -> None:
        """`maps` are the channels of the backbone's maps from fine to coarse, `channels` those of the image."""
        super().__init__()
        skips = [*maps[-2::-1], channels]
        widths = [min(_WIDEST, width) for width in maps[-2::-1]] + [_LAST]
        inputs = [maps[-1], *widths[:-1]]
        self.steps = nn.ModuleList(_Step(*sizes) for sizes in zip(inputs, skips, widths, strict=True))
        self.last = nn.Conv2d(_LAST, 1, 1)
        assert self.last.bias is not None
        nn.init.constant_(self.last.bias, _RARE)

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Images (N, C, H, W) and their maps to logits (N, H, W)."""
        y = maps[-1]
        for step, skip in zip(self.steps, [*maps[-2::-1], x], strict=True):
            y = step(y, skip)
        logits: Tensor = self.last(y)[:, 0]
        return logits


class _Step(nn.Module):
    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs + skip, outputs, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, outputs)

    def forward(self, y: Tensor, skip: Tensor) -> Tensor:
        larger = F.interpolate(y, skip.shape[-2:], mode="nearest")
        return torch.relu(self.norm(self.conv(torch.cat([larger, skip], dim=1))))
