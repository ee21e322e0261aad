"""The 6 k-parameter network of the light workload."""

from __future__ import annotations

from torch import Tensor, nn

from fedgraft.common.plugins.registry import Kind
from fedgraft.common.plugins.registry import register as register_plugin


class BenchCNN(nn.Module):
    """Three small convolutions, mean over positions."""

    feature_dim = 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, 32)."""
        return self.layers(x).mean((2, 3))


def made(channels: int, size: int) -> BenchCNN:  # noqa: ARG001
    """As a backbone of a plug-in is made."""
    return BenchCNN(channels)


def register() -> None:
    """Make the network known by name, as a user's own backbone would be."""
    register_plugin(Kind.BACKBONES, "bench_cnn", made)
