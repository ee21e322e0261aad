"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation and with ReLU6, as Google published it for devices
(Tan and Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks", and its "lite" variants).

Padding is TensorFlow's "same", which for a stride of two is one pixel more below and on the right. Nothing is in place,
and no layer's form depends on the data, as private training needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

_BLOCKS = (
    # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_EPS, _MOMENTUM = 1e-3, 0.01


class _Convolution(nn.Sequential):
    """Padding, convolution and norm, with ReLU6 behind if asked; knows the side of the image that it makes."""

    def __init__(
        self, channels: tuple[int, int], kernel: int, stride: int, size: int, *, depthwise: bool = False
    ) -> None:
        self.size = -(-size // stride)
        total = max(0, (self.size - 1) * stride + kernel - size)
        even = total % 2 == 0
        pad: nn.Module = nn.Identity() if even else nn.ZeroPad2d((total // 2, total - total // 2) * 2)
        groups = channels[0] if depthwise else 1
        conv = nn.Conv2d(*channels, kernel, stride, total // 2 if even else 0, groups=groups, bias=False)
        super().__init__()
        self.pad = pad
        self.conv = conv
        self.norm = nn.BatchNorm2d(channels[1], eps=_EPS, momentum=_MOMENTUM)


class InvertedResidual(nn.Module):
    """Expansion, a depthwise convolution, projection; and a skip connection where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, size: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _Convolution((inputs, wide), 1, 1, size) if expansion > 1 else None
        self.depthwise = _Convolution((wide, wide), kernel, stride, size, depthwise=True)
        self.size = self.depthwise.size
        self.project = _Convolution((wide, outputs), 1, 1, self.size)
        self.relu6 = nn.ReLU6()
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(self.relu6(self.depthwise(y)))
        found: Tensor = x + y if self.skips else y
        return found


class EfficientNetLite0(nn.Module):
    """About 3.4 M parameters without its head; features (N, 1280) are means over positions."""

    feature_dim = 1280

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.stem = _Convolution((channels, 32), 3, 2, size)
        blocks: list[nn.Module] = []
        inputs, side = 32, self.stem.size
        for repeats, kernel, stride, expansion, outputs in _BLOCKS:
            for number in range(repeats):
                block = InvertedResidual(inputs, outputs, kernel, stride if number == 0 else 1, expansion, side)
                blocks.append(block)
                inputs, side = outputs, block.size
        self.blocks = nn.Sequential(*blocks)
        self.top = _Convolution((inputs, self.feature_dim), 1, 1, side)
        self.relu6 = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 1280) of images (N, channels, size, size)."""
        y = self.relu6(self.top(self.blocks(self.relu6(self.stem(x)))))
        features: Tensor = y.mean((2, 3))
        return features

    def maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features as `forward`, and the last map (N, C, H, W) of each resolution, from fine to coarse."""
        y = self.relu6(self.stem(x))
        found: list[Tensor] = []
        for block in self.blocks:
            y = block(y)
            if found and found[-1].shape[2:] == y.shape[2:]:
                found.pop()
            found.append(y)
        return self.relu6(self.top(y)).mean((2, 3)), found


_PUBLISHED = (
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_conv_head\.", "top.conv."),
    (r"^_bn1\.", "top.norm."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.conv."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.conv."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.conv."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.norm."),
)


def from_published(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Entries of efficientnet-lite-pytorch by their names here, without the head `_fc`; others stay as they are."""
    renamed = {}
    for key, array in arrays.items():
        name = key
        for pattern, replacement in _PUBLISHED:
            name = re.sub(pattern, replacement, name)
        if not key.startswith("_fc."):
            renamed[name] = array
    return renamed
