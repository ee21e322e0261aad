"""Feature maps of a backbone at several resolutions, for heads that answer for every pixel."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedgraft.common.base.errors import InputError
from fedgraft.common.models.backbones.efficientnet_lite import EfficientNetLite0
from fedgraft.common.models.backbones.slim import SlimResNet

_KNOWN = "slim_resnet, efficientnet_lite0 and torchvision's resnet, resnext and wide_resnet"


def feature_maps(backbone: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The backbone's features (N, dim), equal to its own forward pass, and maps (N, C, H, W) from fine to coarse.

    InputError for a backbone of which no maps are known.
    """
    if isinstance(backbone, SlimResNet):
        return _slim(backbone, x)
    if isinstance(backbone, EfficientNetLite0):
        return backbone.maps(x)
    if _is_resnet(backbone):
        return _resnet(backbone, x)
    if callable(own := getattr(backbone, "feature_maps", None)):  # a plug-in's
        z, maps = own(x)
        return z, list(maps)
    raise InputError(
        f"No feature maps are known of {type(backbone).__name__}, and a mask cannot be drawn without.",
        fix=f"Take a backbone that has them: {_KNOWN}.",
    )


def map_channels(backbone: nn.Module, channels: int, size: int) -> Sequence[int]:
    """How many channels each map has, found by one image of zeros. InputError as `feature_maps`."""
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            _, maps = feature_maps(backbone, torch.zeros(1, channels, size, size))
    finally:
        backbone.train(training)
    return [int(each.shape[1]) for each in maps]


def _is_resnet(backbone: nn.Module) -> bool:
    """Without importing torchvision, which takes seconds, unless it has made the backbone."""
    module = sys.modules.get("torchvision.models.resnet")
    return module is not None and isinstance(backbone, module.ResNet)


def _slim(backbone: SlimResNet, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    y = torch.relu(backbone.bn1(backbone.conv1(x)))
    maps = []
    for block in backbone.blocks:
        y = block(y)
        maps.append(y)
    return y.mean((2, 3)), maps


def _resnet(backbone: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    y = backbone.relu(backbone.bn1(backbone.conv1(x)))
    maps = [y]
    y = backbone.maxpool(y)
    for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        y = layer(y)
        maps.append(y)
    return backbone.fc(torch.flatten(backbone.avgpool(y), 1)), maps
