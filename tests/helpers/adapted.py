"""Small networks with attention, and low-rank adapters that say something."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.plugins.registry import Kind, register, source
from fedgraft.common.study.plan import ADAPTERS


class TinyViT(nn.Module):
    """torchvision's vision transformer, two blocks of width 16."""

    feature_dim = 16

    def __init__(self, channels: int, size: int) -> None:
        from torchvision.models import VisionTransformer

        super().__init__()
        self.vit = VisionTransformer(size, size // 4, 2, 2, 16, 32)
        self.vit.conv_proj = nn.Conv2d(channels, 16, size // 4, size // 4)
        self.vit.heads = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.vit(x)
        return features


class TinyConvNeXt(nn.Module):
    """torchvision's ConvNeXt, two stages of a block each."""

    feature_dim = 24

    def __init__(self, channels: int, size: int) -> None:
        from torchvision.models.convnext import CNBlockConfig, ConvNeXt

        super().__init__()
        del size
        self.net = ConvNeXt([CNBlockConfig(12, 24, 1), CNBlockConfig(24, None, 1)], layer_scale=0.5)
        self.net.features[0][0] = nn.Conv2d(channels, 12, 4, 4)
        self.net.classifier[2] = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.net(x)
        return features


def plugged(name: str, factory: Any, **adapters: Any) -> dict[str, Any]:
    """What a study says of a backbone that is registered here, with these adapters."""
    register(Kind.BACKBONES, name, factory)
    found = source(Kind.BACKBONES, name)
    assert found is not None
    return {
        "model": {"backbone": name, "weights": None, "adapters": {"rank": 2, "where": "all"} | adapters},
        "plugins": [str(found.plugin)],
    }


def randomise(model: nn.Module, tags: Any, seed: int = 5) -> list[str]:
    """Put numbers into all adapters, so that B is not 0; their keys."""
    keys = [key for key, tag in tags.items() if tag.role in ADAPTERS]
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key in keys:
                value.copy_(torch.randn(value.shape, generator=draw) * 0.3)
    return keys
