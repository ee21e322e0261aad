"""The parts of a network by their types: which are blocks, which norm layers, and the role of each entry."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fedgraft.common.harmonisation.layer import COMMON, HarmoniseColumns
from fedgraft.common.models.backbones.slim import StandardiseColumns
from fedgraft.common.models.ensemble import Temperature
from fedgraft.common.study.plan import Role

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def units(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of a backbone: the root, containers and torchvision's stages are opened, all else is one block."""
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}"
        if type(child) in _CONTAINERS or type(child).__name__ in ("Encoder", "_DenseBlock", "AnyStage"):
            yield from units(child, path)
        else:
            yield path, child


def own_entries(part: nn.Module) -> list[str]:
    """State entries that are the module's own, not those of its parts."""
    persistent = [key for key in part._buffers if key not in part._non_persistent_buffers_set]
    own = [key for key, value in part._parameters.items() if value is not None]
    return own + [key for key in persistent if part._buffers[key] is not None]


def is_norm(part: nn.Module) -> bool:
    """Whether it is a norm layer, frozen ones of torchvision included."""
    return isinstance(part, (*_NORMS, *of_torchvision("FrozenBatchNorm2d")))


def of_torchvision(name: str) -> tuple[type[nn.Module], ...]:
    """A class of torchvision's layers; none if torchvision, which takes seconds to import, has made no part."""
    layers = sys.modules.get("torchvision.ops")
    return (getattr(layers, name),) if layers is not None else ()


def draws(part: nn.Module) -> bool:
    """Whether a layer draws in training, as dropout of whatever make does; told by its type and name."""
    if isinstance(part, nn.MultiheadAttention):
        return float(part.dropout) > 0
    return "drop" in type(part).__name__.lower() or isinstance(part, of_torchvision("StochasticDepth"))


def role_of(part: nn.Module, key: str, *, is_stem: bool) -> Role:
    """The role of a part's own entry, of a backbone without adapters."""
    if is_norm(part):
        return Role.NORM_STATS if key in _STATISTICS else Role.NORM_AFFINE
    if isinstance(part, HarmoniseColumns):
        return Role.SCALE if key in COMMON else Role.SITE_EFFECTS
    if isinstance(part, StandardiseColumns | Temperature):
        return Role.SCALE
    return Role.STEM if is_stem else Role.BODY
