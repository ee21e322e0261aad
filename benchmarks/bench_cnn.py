"""The 6 k-parameter network of the light workload."""

from __future__ import annotations

from torch import Tensor, nn

from fedgraft.common.models.backbones import named as backbones


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


def register() -> None:
    """Make the network known by name, as a user's own backbone would be."""
    backbones.register("bench_cnn", lambda channels, _: BenchCNN(channels))
