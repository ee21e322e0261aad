"""Backbones by name: torchvision's classifiers without their last layer, and our own. Nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from torch import nn

from fedgraft.common.base.errors import InputError
from fedgraft.common.models.backbones.backbone import Backbone
from fedgraft.common.models.backbones.controls import Intensity, Thumbnail
from fedgraft.common.models.backbones.efficientnet_lite import EfficientNetLite0
from fedgraft.common.models.backbones.plugged import plugged_image_backbone, plugged_table_backbone
from fedgraft.common.models.backbones.slim import (
    SlimResNet,
    TableLinear,
    TableMLP,
    group_norm,
)
from fedgraft.common.models.backbones.timm_models import is_timms, timm_backbone
from fedgraft.common.plugins.plugin import Plugin
from fedgraft.common.plugins.registry import Kind, source

_FAMILIES = (
    ("alexnet", 64),
    ("vgg", 32),
    ("googlenet", 32),
    ("resnet", 32),
    ("resnext", 32),
    ("wide_resnet", 32),
    ("densenet", 32),
    ("efficientnet", 32),
    ("mobilenet", 32),
    ("mnasnet", 32),
    ("shufflenet", 32),
    ("regnet", 32),
    ("convnext", 32),
    ("vit", 32),
)
"""torchvision's families and the smallest image that each can take, in pixels."""

_OPTIONS: dict[str, dict[str, bool]] = {"googlenet": {"aux_logits": False, "init_weights": True}}


_OWN: dict[str, Callable[[int, int], nn.Module]] = {
    "slim_resnet": lambda channels, _: SlimResNet(channels),
    "efficientnet_lite0": EfficientNetLite0,
    "slim_resnet_gn": lambda channels, _: SlimResNet(channels, group_norm),
    "thumbnail": Thumbnail,
    "intensity": Intensity,
}
"""From channels and image size to a network with an attribute `feature_dim`."""
_GN = "_gn"
"""At the end of a name: group norm in place of batch norm. Weights trained with the one do not fit the other."""
_TABLE: dict[str, Callable[[int], nn.Module]] = {"table_linear": TableLinear, "table_mlp": TableMLP}


def ships(name: str) -> bool:
    """Whether the backbone of this name is fedgraft's, torchvision's or timm's, and not somebody's own."""
    return (
        name in _OWN
        or name in _TABLE
        or is_timms(name)
        or (_may_be_torchvisions(name) and name in _torchvision_names())
    )


def plugins_behind(backbones: Iterable[str]) -> tuple[Plugin, ...]:
    """Whose code these are besides fedgraft's and torchvision's, each once; of a name that nobody has, nothing."""
    found = [one for name in backbones if (one := source(Kind.BACKBONES, name)) is not None and not ships(name)]
    return tuple(dict.fromkeys(one.plugin for one in found))


def _may_be_torchvisions(name: str) -> bool:
    """Without asking torchvision, which takes seconds to import."""
    return name.startswith(tuple(family for family, _ in _FAMILIES))


@cache
def _torchvision_names() -> tuple[str, ...]:
    import torchvision  # takes seconds, and only its own backbones need it

    prefixes = tuple(family for family, _ in _FAMILIES)
    names = torchvision.models.list_models(torchvision.models)
    grouped = (f"{name}{_GN}" for name in names if name.startswith(("resnet", "resnext", "wide_resnet")))
    return (*(name for name in names if name.startswith(prefixes)), *grouped)


def image_backbones() -> tuple[str, ...]:
    """All names for `model.backbone` with images: fedgraft's own, torchvision's, and those with group norm."""
    return (*_OWN, *_torchvision_names())


def table_backbones() -> tuple[str, ...]:
    """All names for `model.backbone` with tables."""
    return tuple(_TABLE)


def build_image_backbone(name: str, channels: int, size: int) -> Backbone:
    """A backbone for images of `size` pixels with random entries from torch's global stream.

    InputError for a name that does not exist, is for tables, or cannot take so small an image.
    """
    if name in _OWN:
        module = _OWN[name](channels, size)
        return Backbone(module, _feature_dim(module))
    if name in _TABLE:
        raise InputError(f"The backbone {name!r} is for tables.", fix=f"For images: {', '.join(_OWN)}, resnet18, ...")
    if is_timms(name):
        return timm_backbone(name, channels, size)
    if not ships(name):
        return plugged_image_backbone(name, channels, size, image_backbones())
    smallest = next(least for family, least in _FAMILIES if name.startswith(family))
    if size < smallest:
        raise InputError(f"{name} needs images of at least {smallest} pixels, not {size}.")
    options: dict[str, Any] = dict(_OPTIONS.get(name, {}))
    if name.endswith(_GN):
        options["norm_layer"] = group_norm
    if name.startswith("vit"):
        patch = int(name.rsplit("_", 1)[1])
        if size % patch:
            raise InputError(f"{name} needs an image size that is a multiple of {patch}, not {size}.")
        options["image_size"] = size
    import torchvision

    module = torchvision.models.get_model(name.removesuffix(_GN), weights=None, **options)
    head, dim = _cut_head(module)
    if channels != 3:
        _change_stem(module, channels)
    return Backbone(module, dim, head)


def build_table_backbone(name: str, columns: int) -> Backbone:
    """A backbone for tables. InputError for a name that is not for tables."""
    if name not in _TABLE:
        if ships(name):
            raise InputError(f"{name!r} is no backbone for tables.", fix=f"For tables: {', '.join(_TABLE)}.")
        return plugged_table_backbone(name, columns, table_backbones())
    module = _TABLE[name](columns)
    return Backbone(module, _feature_dim(module))


def stem_name(module: nn.Module) -> str:
    """The first convolution or linear layer's name, else that of the first part with entries: where the input comes in.

    "" for a network that learns nothing.
    """
    parts = [(str(name), part) for name, part in module.named_modules() if any(True for _ in part.parameters(False))]
    first = next((name for name, part in parts if isinstance(part, nn.Conv2d | nn.Linear)), None)
    return first if first is not None else parts[0][0] if parts else ""


def _feature_dim(module: nn.Module) -> int:
    dim = module.feature_dim
    assert isinstance(dim, int)
    return dim


def _cut_head(module: nn.Module) -> tuple[str, int]:
    """Put nothing in the place of the last linear layer, torchvision's classifier; its name and its input's width."""
    name = [str(name) for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]
    head = module.get_submodule(name)
    assert isinstance(head, nn.Linear)
    module.set_submodule(name, nn.Identity())
    return name, head.in_features


def _change_stem(module: nn.Module, channels: int) -> None:
    """Give the first convolution another number of input channels."""
    name = stem_name(module)
    old = module.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel_size=(old.kernel_size[0], old.kernel_size[1]),
        stride=(old.stride[0], old.stride[1]),
        padding=old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        bias=old.bias is not None,
    )
    module.set_submodule(name, new)
