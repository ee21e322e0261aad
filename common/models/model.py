"""The model of a study: a backbone that turns cases into features, and a named linear head per task."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.seeds import derive
from fedgraft.common.harmonisation.layer import HarmoniseColumns
from fedgraft.common.models.architecture import Architecture, Entry
from fedgraft.common.models.backbones.adapters import Adapted, adapt
from fedgraft.common.models.backbones.backbone import Backbone
from fedgraft.common.models.backbones.feature_maps import feature_maps, map_channels
from fedgraft.common.models.backbones.merging import A, B
from fedgraft.common.models.backbones.named import (
    build_image_backbone,
    build_table_backbone,
    stem_name,
)
from fedgraft.common.models.backbones.slim import StandardiseColumns
from fedgraft.common.models.decoder import Decoder
from fedgraft.common.models.ensemble import MEAN_SCALE, Ensemble
from fedgraft.common.models.parts import draws, is_norm, own_entries, role_of, units
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.model_spec import Adapters
from fedgraft.common.study.plan import Role, Tag
from fedgraft.common.study.tasks import AnyTask

_DISCRIMINATOR_WIDTH = 64


class TransferModel(nn.Module):
    """Features and heads. State keys are `backbone.` plus the backbone's own, and `heads.TASK.weight` and `.bias`.

    `decoders` make heads that answer for every pixel, by task; their keys begin with `heads.TASK.` as well. They are
    made after all else but domain discriminators, so that they change no entry that is drawn for another. Domain
    discriminators, if a plan has any, are `domain_discriminators.NAME.`; they take no part in `forward`.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Mapping[str, int],
        decoders: Mapping[str, Callable[[], Decoder]] | None = None,
        domain_discriminators: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone.module
        self.feature_dim = backbone.feature_dim
        self.ties_cases = backbone.ties_cases
        self.unseparated = backbone.unseparated
        linear = {task: nn.Linear(self.feature_dim, count) for task, count in heads.items()}
        self.heads = nn.ModuleDict({**linear, **{task: make() for task, make in (decoders or {}).items()}})
        self.decodes = frozenset(decoders or ())
        """Tasks whose heads need the backbone's feature maps, not its features alone."""
        width = {"features": self.feature_dim, "conditional": self.feature_dim * sum(heads.values())}
        self.domain_discriminators = nn.ModuleDict(
            {name: _domain_discriminator(width[name]) for name in domain_discriminators}
        )
        self._units = [
            (name, unit, [f"{name}.{key}" for key in unit.state_dict()])
            for name, unit in units(self.backbone, "backbone")
        ]
        self._tags = self._tag_all()
        self._frozen: list[nn.Module] = []
        self._frozen_as: tuple[frozenset[str], bool] | None = None
        self.classes = dict(heads)
        self.needs_dropout_rng = backbone.draws or any(map(draws, self.modules()))
        """Whether a training pass draws from torch's global random stream."""

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (N, columns) to (N, feature_dim)."""
        return torch.as_tensor(self.backbone(x))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (N, outputs) by task; of masks (N, H, W)."""
        return self.both(x)[1]

    def both(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (N, feature_dim), and what `forward` gives."""
        if not self.decodes:
            z = self.features(x)
            return z, {task: head(z) for task, head in self.heads.items()}
        z, maps = feature_maps(self.backbone, x)
        return z, {task: head(x, maps) if task in self.decodes else head(z) for task, head in self.heads.items()}

    @cached_property
    def bare_heads(self) -> Heads:
        """The linear heads, for cases whose features are known; no entry of the state, nor does it see `train()`."""
        return Heads(self)

    def tags(self) -> dict[str, Tag]:
        """Role, depth and task of every state entry, in the order of the state."""
        return self._tags

    def freeze(self, trainable: Collection[str], *, fixed_norm_stats: bool = False) -> None:
        """Let only `trainable` entries move, until the next call, whatever `train()` is called in between.

        Frozen means no gradient, and none that earlier steps have left, norm layers in eval so that running statistics
        stay, and no dropout in blocks of which nothing is trained. `fixed_norm_stats` keeps all running statistics,
        even where the affine is trained.
        """
        chosen = frozenset(trainable)
        if self._frozen_as == (chosen, fixed_norm_stats):
            return
        self._frozen_as = (chosen, fixed_norm_stats)
        for key, parameter in self.named_parameters():
            parameter.requires_grad_(key in chosen)
            if key not in chosen:  # a method that looks at gradients must not find those of other steps
                parameter.grad = None
        # Also what is no part of a block, such as a network that itself asks whether it is in training.
        self._frozen = [] if any(key.startswith("backbone.") for key in chosen) else [self.backbone]
        awake = False
        for _, unit, keys in self._units:
            awake = any(key in chosen for key in keys) if keys else awake
            if not awake:
                self._frozen.append(unit)
        for name, part in self.backbone.named_modules(prefix="backbone"):
            own = {f"{name}.{key}" for key in own_entries(part)}
            if isinstance(part, _NormBase) and (fixed_norm_stats or not own & chosen):
                self._frozen.append(part)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but what `freeze` has frozen stays in eval."""
        super().train(mode)
        for part in self._frozen if mode else ():
            part.eval()
        return self

    def _tag_all(self) -> dict[str, Tag]:
        depths = self._depths()
        roles: dict[str, Role] = {}
        stem = f"backbone.{stem_name(self.backbone)}" if any(True for _ in self.backbone.parameters()) else ""
        for name, part in self.backbone.named_modules(prefix="backbone"):
            if isinstance(part, Adapted):
                roles |= {f"{name}.{A}": Role.ADAPTER_A, f"{name}.{B}": Role.ADAPTER_B}
            for key in own_entries(part):
                roles.setdefault(f"{name}.{key}", role_of(part, key, is_stem=name == stem))
        last = max(depths.values(), default=0) + 1
        tags = {}
        frozen = tuple(f"{name}.base_models." for name, part in self.named_modules() if isinstance(part, Ensemble))
        for key in self.state_dict():
            if key.startswith(frozen):
                tags[key] = Tag(Role.BASE_MODEL, depths.get(key, 0))
            elif key.startswith("heads."):
                tags[key] = Tag(Role.HEAD, last, key.split(".")[1])
            elif key.startswith("domain_discriminators."):
                tags[key] = Tag(Role.DOMAIN_DISCRIMINATOR, last)
            else:
                tags[key] = Tag(roles[key], depths.get(key, 0))
        return {key: replace(tag, height=last - tag.depth) for key, tag in tags.items()}

    def _depths(self) -> dict[str, int]:
        """0 up to the stem, then one more for every block as registered; a norm layer joins the block before it."""
        depths: dict[str, int] = {}
        depth = -1
        for _, unit, keys in self._units:
            if keys and not (is_norm(unit) and depth >= 0):
                depth += 1
            depths.update(dict.fromkeys(keys, max(depth, 0)))
        return depths


class Heads(nn.Module):
    """The linear heads of a model, for cases whose features are known. The parameters are the model's own."""

    def __init__(self, model: TransferModel) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({task: head for task, head in model.heads.items() if task not in model.decodes})

    def features(self, z: Tensor) -> Tensor:
        """They are given: (N, feature_dim) as they are."""
        return z

    def both(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features as they are, and logits (N, classes) by task."""
        return z, self(z)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """Logits (N, classes) by task, from features (N, d)."""
        return {task: head(z) for task, head in self.heads.items()}


def _domain_discriminator(width: int) -> nn.Module:
    """One logit per case; without norm layers, so that no case's loss depends on others."""
    return nn.Sequential(nn.Linear(width, _DISCRIMINATOR_WIDTH), nn.ReLU(), nn.Linear(_DISCRIMINATOR_WIDTH, 1))


class Extras(NamedTuple):
    """What a model has beside linear heads: decoders for the tasks `masks`, domain discriminators, and so on."""

    masks: Sequence[str] = ()
    domain_discriminators: Collection[str] = ()
    adapters: Adapters | None = None
    harmonised: TableInput | None = None
    """Of a table whose columns are harmonised: which these are."""


NONE = Extras()


def build_model(
    backbone: str,
    heads: Mapping[str, int],
    *,
    channels: int,
    seed: int,
    size: int = 64,
    extras: Extras = NONE,
) -> TransferModel:
    """A model for images, with entries drawn from `seed` alone.

    InputError as `build_image_backbone`, and for a decoder on a backbone without feature maps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = _adapted(build_image_backbone(backbone, channels, size), extras, (channels, size, size), seed)
        maps = map_channels(built.module, channels, size) if extras.masks else ()
        decoders = dict.fromkeys(extras.masks, partial(Decoder, maps, channels))
        return TransferModel(built, heads, decoders, extras.domain_discriminators)


def build_table_model(
    backbone: str, heads: Mapping[str, int], columns: int, seed: int, extras: Extras = NONE
) -> TransferModel:
    """A model for tables of `columns` columns, with entries drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build_table_backbone(backbone, columns)
        if extras.harmonised is not None:
            _harmonise(built.module, extras.harmonised)
        built = _adapted(built, extras, (columns,), seed)
        return TransferModel(built, heads, domain_discriminators=extras.domain_discriminators)


def _harmonise(module: nn.Module, columns: TableInput) -> None:
    """Give the layer that standardises columns one before it."""
    for part in module.modules():
        if isinstance(part, StandardiseColumns):
            spans = tuple(columns.covariate_spans.values())
            part.harmonise = HarmoniseColumns(columns.width, tuple(columns.harmonised.values()), spans)
            return
    raise InputError("This backbone does not standardise columns, so that they cannot be harmonised.")


def _adapted(backbone: Backbone, extras: Extras, shape: Sequence[int], seed: int) -> Backbone:
    """With adapters if there are to be any, drawn so that no other entry is another for it."""
    if extras.adapters is None:
        return backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "adapters"))
        return adapt(backbone, extras.adapters, stem_name(backbone.module), shape)


def build_ensemble(base_models: Sequence[TransferModel], tasks: Mapping[str, AnyTask], seed: int) -> TransferModel:
    """Models as one, which answers with their mean: its heads begin as that, to the last bit.

    `tasks` are those that every base model has a head for, as it was built.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ensemble = Ensemble(base_models, tasks)
        model = TransferModel(
            Backbone(ensemble, ensemble.feature_dim), {name: task.outputs for name, task in tasks.items()}
        )
    with torch.no_grad():
        for name, task in tasks.items():
            head = model.heads[name]
            assert isinstance(head, nn.Linear)
            head.bias.zero_()
            head.weight.zero_()
            head.weight[:, ensemble.mean_at(name) :][:, : task.outputs] = torch.eye(task.outputs) / MEAN_SCALE
    return model


def state_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """All state entries as arrays; on the CPU they share the model's memory."""
    return {key: value.detach().cpu().numpy() for key, value in model.state_dict().items()}


def describe(model: TransferModel) -> Architecture:
    """What a model is made of."""
    tags, own = model.tags(), state_arrays(model)
    base_models = model.backbone.base_models if isinstance(model.backbone, Ensemble) else ()
    parts = tuple(describe(part) for part in base_models if isinstance(part, TransferModel))
    entries = {key: Entry(array.shape, array.dtype.name, tags[key]) for key, array in own.items()}
    return Architecture(entries, parts, model.unseparated)


def load_arrays(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Put arrays into a model in place. InputError lists every entry that is missing, extra or of another shape."""
    state = model.state_dict()
    faults = [f"{key}: missing" for key in state if key not in arrays]
    faults += [f"{key}: not in the model" for key in arrays if key not in state]
    faults += [
        f"{key}: is {arrays[key].shape}, must be {tuple(value.shape)}"
        for key, value in state.items()
        if key in arrays and arrays[key].shape != tuple(value.shape)
    ]
    if faults:
        raise InputError("The entries do not fit the model: " + "; ".join(faults) + ".")
    with torch.no_grad():
        for key, value in state.items():
            value.copy_(torch.from_numpy(np.array(arrays[key])))
