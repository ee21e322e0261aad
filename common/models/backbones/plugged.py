"""Backbones that plug-ins bring: any `nn.Module`, looked at before it is used.

A plug-in of the kind backbones is a factory. With parameters `channels` and `size` it is for images (N, C, H, W), with
`columns` for tables (N, columns), which come standardised. It gives a module with an attribute `feature_dim`, whose
forward pass gives features (N, feature_dim). The entries of a model are `backbone.` and the module's own names, of a
table `backbone.network.` and those; what is a norm layer and what the stem is told by the types of its parts. With a
method `feature_maps(x)`, which gives the same features and maps (N, C, H, W) from fine to coarse, masks can be drawn.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedgraft.common.base.errors import ENDS, InputError
from fedgraft.common.models.backbones.backbone import Backbone
from fedgraft.common.models.backbones.slim import StandardiseColumns
from fedgraft.common.plugins.registry import Kind, load

_CASES = 3
_IMAGES, _TABLE = ("channels", "size"), ("columns",)
_SEEDS = 16
_AGREES = 1e-4
"""Relative: other cases of a batch may change how sums are rounded, and no more."""


def plugged_image_backbone(name: str, channels: int, size: int, known: Iterable[str]) -> Backbone:
    """A plug-in's backbone for images, with random entries from torch's global stream; `known` are fedgraft's names.

    InputError for a name that nobody has, a factory that is for tables, or a module that is no backbone.
    """
    factory = load(Kind.BACKBONES, name, known)
    if _takes(name, factory) is not _IMAGES:
        raise InputError(f"The backbone {name!r} is for tables.", fix="Give the study a table, or name another.")
    module = _made(name, lambda: factory(channels=channels, size=size))
    return _looked_at(name, module, (channels, size, size))


def plugged_table_backbone(name: str, columns: int, known: Iterable[str]) -> Backbone:
    """A plug-in's backbone for tables, behind a layer that brings columns to one scale. InputError as for images."""
    factory = load(Kind.BACKBONES, name, known)
    if _takes(name, factory) is not _TABLE:
        raise InputError(f"{name!r} is no backbone for tables.", fix="Give the study images, or name another.")
    module = _made(name, lambda: factory(columns=columns))
    found = _looked_at(name, module, (columns,))
    return replace(found, module=_Standardised(columns, module))


class _Standardised(nn.Module):
    def __init__(self, columns: int, network: nn.Module) -> None:
        super().__init__()
        self.standardise = StandardiseColumns(columns)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(self.standardise(x))
        return features


def _takes(name: str, factory: Any) -> tuple[str, ...]:
    """By which parameters a factory is called."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        raise InputError(f"The backbone {name!r}: {type(factory).__name__} is no factory of modules.") from None
    for wanted in (_TABLE, _IMAGES):
        try:
            signature.bind(**dict.fromkeys(wanted))
        except TypeError:
            continue
        return wanted
    raise InputError(
        f"The backbone {name!r} takes {signature}.",
        fix="A factory takes `channels` and `size` for images, or `columns` for tables; all else needs a default.",
    )


def _made(name: str, make: Callable[[], object]) -> nn.Module:
    module = _tried(name, "its factory", make)
    if not isinstance(module, nn.Module):
        raise InputError(f"The backbone {name!r}: its factory gives {type(module).__name__}, and no nn.Module.")
    return module


def _looked_at(name: str, module: nn.Module, shape: tuple[int, ...]) -> Backbone:
    """The module with its width. InputError with the reason if it cannot be the backbone of a model."""
    dim = getattr(module, "feature_dim", None)
    if not isinstance(dim, int) or dim < 1:
        raise InputError(
            f"The backbone {name!r} does not say how wide its features are.", fix="Set `feature_dim` to a number."
        )
    with torch.random.fork_rng(devices=[]):  # what is looked at changes nothing that is drawn afterwards
        x = torch.randn(_CASES, *shape, generator=torch.Generator().manual_seed(0))
        _tried(name, f"its forward pass of {tuple(x.shape)}", lambda: module.eval()(x[:1]))  # lazy parts get a shape
        twin = _tried(name, "a copy of it", lambda: copy.deepcopy(module))
        z = _features(name, twin.eval(), x)
        if tuple(z.shape) != (_CASES, dim) or not z.is_floating_point() or not bool(z.isfinite().all()):
            raise InputError(
                f"The backbone {name!r} gives {tuple(z.shape)} of {tuple(x.shape)}; its features must be finite "
                f"numbers ({_CASES}, {dim})."
            )
        if _ties(name, twin, x):
            raise InputError(
                f"The backbone {name!r} says something else of an image when others stand beside it in the batch, even "
                "where it only answers.",
                fix="Let each case be looked at by itself.",
            )
        twin.train()
        for part in twin.modules():
            if isinstance(part, _NormBase):
                part.eval()
        found = [_features(name, twin, x, seed=seed) for seed in range(_SEEDS // 4)]
        draws = not all(torch.equal(each, found[0]) for each in found)
        ties = _ties(name, twin, x) or (draws and _shares_draws(name, twin, x))
    _demand_plain_entries(name, module)
    module.train()
    return Backbone(module, dim, ties_cases=ties, draws=draws)


def _ties(name: str, module: nn.Module, x: Tensor) -> bool:
    """Whether the features of the first case change with the other cases."""
    others = torch.cat([x[:1], x[1:].flip(0) * 2 + 1])
    one, other = _features(name, module, x)[0], _features(name, module, others)[0]
    return not torch.allclose(one, other, rtol=_AGREES, atol=_AGREES * float(one.abs().max()))


def _shares_draws(name: str, module: nn.Module, x: Tensor) -> bool:
    """Whether a draw is for all cases of a batch, as in stochastic depth by batch: who shares it is then who is there.

    Seen where equal cases always come out alike, and otherwise by another seed; layers of torch's that draw for each
    case aside.
    """
    depths = (part for part in module.modules() if type(part).__name__ == "StochasticDepth")
    if any(getattr(part, "mode", "row") != "row" for part in depths):
        return True
    training = [part for part in module.modules() if isinstance(part, nn.modules.dropout._DropoutNd) and part.training]
    for part in training:
        part.eval()
    equal = x[:1].expand_as(x)
    found = [_features(name, module, equal, seed=seed) for seed in range(_SEEDS)]
    for part in training:
        part.train()
    alike = all(torch.allclose(each, each[:1].expand_as(each), rtol=_AGREES, atol=_AGREES) for each in found)
    return alike and not all(torch.equal(each, found[0]) for each in found)


def _features(name: str, module: nn.Module, x: Tensor, seed: int = 0) -> Tensor:
    """In training with the same draws each time, so that dropout alone makes no difference."""
    torch.manual_seed(seed)
    with torch.no_grad():
        found = _tried(name, f"its forward pass of {tuple(x.shape)}", lambda: module(x))
    if not isinstance(found, Tensor):
        raise InputError(f"The backbone {name!r}: its forward pass gives {type(found).__name__}, not features.")
    return found


def _demand_plain_entries(name: str, module: nn.Module) -> None:
    """What travels, is averaged and is frozen by name: numbers, each under one name."""
    seen: dict[int, str] = {}
    for key, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or value.is_complex() or value.is_quantized or value.dtype is torch.bool:
            raise InputError(f"The backbone {name!r}: its entry {key} holds no real numbers.")
        if (first := seen.setdefault(id(value), key)) != key:
            raise InputError(f"The backbone {name!r}: {first} and {key} are one tensor, which would travel twice.")


def _tried(name: str, what: str, attempt: Callable[[], Any]) -> Any:
    try:
        return attempt()
    except ENDS:
        raise
    except BaseException as error:  # the code of others may raise anything
        raise InputError(f"The backbone {name!r}: {what} fails: {type(error).__name__}: {error}") from error
