"""Small networks of our own: a slim ResNet for images, and the backbones for tables."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

MakeNorm = Callable[[int], nn.Module]
"""From a number of channels to a norm layer over them."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Statistics of each case alone, over 32 groups of channels, or pairs where there are fewer (Wu and He 2018)."""
    return nn.GroupNorm(min(32, channels // 2), channels)


class Block(nn.Module):
    """Two 3x3 convolutions with norm layers and a skip connection; nothing in place, as private training needs."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: MakeNorm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = norm(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.skip(x))


class SlimResNet(nn.Module):
    """A ResNet of about 0.3 M parameters: four blocks of 16 to 128 channels; features are the mean over positions."""

    feature_dim = 128

    def __init__(self, channels: int, norm: MakeNorm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 2, 1, bias=False)
        self.bn1 = norm(16)
        sizes = ((16, 16, 1), (16, 32, 2), (32, 64, 2), (64, 128, 2))
        self.blocks = nn.Sequential(*(Block(*size, norm) for size in sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 128) of images (N, channels, H, W)."""
        y = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        features: Tensor = y.mean((2, 3))
        return features


class StandardiseColumns(nn.Module):
    """Brings a table's columns to one scale, from sums over all sites; a missing value becomes 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))
        self.harmonise: nn.Module | None = None
        """What takes sites' own effects out of the columns before, where a study asks for it."""

    def forward(self, x: Tensor) -> Tensor:
        """Standardised columns (N, columns); a missing value, which is NaN, becomes 0."""
        x = x if self.harmonise is None else self.harmonise(x)
        return torch.nan_to_num((x - self.mean) / self.std, nan=0.0)


class TableLinear(nn.Module):
    """The standardised columns themselves: with a linear head, a logistic regression."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.feature_dim = columns
        self.standardise = StandardiseColumns(columns)

    def forward(self, x: Tensor) -> Tensor:
        """The standardised columns (N, columns), which are its features."""
        columns: Tensor = self.standardise(x)
        return columns


class TableMLP(nn.Module):
    """Two hidden layers on standardised columns; no norm layers, so that every method applies."""

    feature_dim = 32

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.standardise = StandardiseColumns(columns)
        self.layers = nn.Sequential(nn.Linear(columns, 64), nn.ReLU(), nn.Linear(64, self.feature_dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 32) of a table's rows (N, columns)."""
        features: Tensor = self.layers(self.standardise(x))
        return features
