"""A backbone of one's own: any `nn.Module` that turns images into features."""

from __future__ import annotations

from torch import Tensor, nn


class PatchMixer(nn.Module):
    """Patches of 4 x 4 pixels, mixed by two convolutions; features are the mean over all places.

    fedgraft calls the class with `channels` and `size`, and asks for `feature_dim`. The first convolution is taken for
    the stem and the group norms for norm layers, by their types; no layer ties cases together, so it can be trained
    with differential privacy as well.
    """

    feature_dim = 24

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        if size % 4:
            raise ValueError(f"images of {size} pixels cannot be cut into patches of 4")
        self.patches = nn.Conv2d(channels, self.feature_dim, kernel_size=4, stride=4)
        self.norm = nn.GroupNorm(4, self.feature_dim)
        self.mix = nn.Sequential(
            nn.Conv2d(self.feature_dim, self.feature_dim, kernel_size=3, padding=1),
            nn.GroupNorm(4, self.feature_dim),
            nn.ReLU(),
            nn.Conv2d(self.feature_dim, self.feature_dim, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 24) of images (N, channels, size, size)."""
        y = self.norm(self.patches(x)).relu()
        features: Tensor = (y + self.mix(y)).mean((2, 3))
        return features
