"""Taking in weights from elsewhere: safetensors, state-dict .pth, or a torchvision weights file by its enum name."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import ENDS, InputError, WeightsError
from fedgraft.common.base.files import home, parse_tensors
from fedgraft.common.config.config_files import describe
from fedgraft.common.models.backbones.backbone import Backbone
from fedgraft.common.models.backbones.efficientnet_lite import from_published
from fedgraft.common.models.backbones.named import build_image_backbone, plugins_behind, stem_name
from fedgraft.common.models.backbones.timm_models import is_timms
from fedgraft.common.models.initialise import graft
from fedgraft.common.models.model import TransferModel
from fedgraft.common.models.packaged_weights import LITE_INPUT
from fedgraft.common.models.weights import (
    KeyReport,
    WeightsManifest,
    demand_id,
    save_weights,
)
from fedgraft.common.study.inputs import ImageInput
from fedgraft.simulations.weights.families import by_position, timm_names

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
    (re.compile(r"(denselayer\d+)\.layers\."), r"\1."),
)
"""What torchvision has renamed since it published its DenseNets and vision transformers; and MONAI's DenseNets."""
_HEADS_ELSEWHERE = ("backbone.class_layers.",)
"""What MONAI calls a DenseNet's head."""

_SIZE = 224
_INPUTS = {
    "imagenet": ImageInput(
        size=_SIZE, channels=3, normalise="fixed", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    "zscore": ImageInput(size=_SIZE, channels=3, normalise="zscore"),
    "lite": LITE_INPUT,
    "unknown": None,
}


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from: a file, and what a person says of it. `enum` names an entry of torchvision's weights.

    `normalise` is how images were prepared for them: `imagenet` for the usual constants, `lite` for (x - 127) / 128 as
    EfficientNet-Lite wants it, `zscore`, or not known; `mean` and `std` (of colours, 0 to 1) say it in numbers.
    """

    file: Path
    backbone: str
    licence: str
    trained_on: str = "not stated"
    normalise: Literal["imagenet", "zscore", "lite", "unknown"] = "unknown"
    enum: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def import_weights(source: WeightsSource, name: str) -> tuple[WeightsManifest, KeyReport]:
    """Check a weights file against its backbone and keep it under fedgraft's home as `name`.

    WeightsError for a pickle with anything but tensors, a wrong digest, or entries that do not fit, all listed.
    """
    demand_id(name)
    target = home() / "weights" / name
    if target.exists():
        raise WeightsError(f"There are weights called {name!r} already.", fix=f"Choose another id, or remove {target}.")
    demand_place(target)
    data = _read(source.file)
    described = _describe(source, data)
    tensors = _tensors(source.file, data)
    if source.backbone == "efficientnet_lite0":
        tensors = from_published(tensors)
    if is_timms(source.backbone):
        tensors = timm_names(tensors)
    given = _current_names(by_position(_with_prefix(tensors), _children_of(source.backbone)))
    own = _backbone_for(source.backbone, described["input"].size if described["input"] else _SIZE, given)
    unused = (
        "heads.",
        "backbone.aux1.",
        "backbone.aux2.",
        *_HEADS_ELSEWHERE,
        *([f"backbone.{own.head}."] if own.head else []),
    )
    kept = {key: array for key, array in given.items() if not key.startswith(unused)}
    model = TransferModel(own, {})
    # Files from before torch counted batches lack the counts; only a momentum of None would need them.
    kept |= {key: np.array(0) for key in model.tags() if key.endswith(".num_batches_tracked") and key not in kept}
    report = graft(model, kept, str(source.file))
    seen = described["input"]
    stem = kept.get(f"backbone.{stem_name(own.module)}.weight")
    if seen is not None and seen.normalise == "fixed" and stem is not None and stem.shape[1] == 1:
        grey = {"mean": (round(fmean(seen.mean), 3),), "std": (round(fmean(seen.std), 3),)}
        described["input"] = seen.model_copy(update={"channels": 1, **grey})
    facts = described | {
        "id": name,
        "backbone": source.backbone,
        "classes": {},
        "synthetic": False,
        "plugins": plugins_behind([source.backbone]),
        "how": f"imported from {source.file.name}, sha256 {hashlib.sha256(data).hexdigest()}",
    }
    manifest = save_weights(target, kept, facts)
    return manifest, KeyReport(report.loaded, report.adapted, (), tuple(sorted(set(given) - set(kept))))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}.") from None


def _tensors(path: Path, data: bytes) -> dict[str, np.ndarray]:
    """The arrays in a file, whatever its format; nothing but tensors is ever unpickled."""
    if path.suffix == ".safetensors":
        try:
            return parse_tensors(data, str(path))
        except InputError as error:
            raise WeightsError(str(error)) from None
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ENDS:
        raise
    except BaseException as error:  # the bytes are a stranger's: whatever they break, they are refused
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path}: holds more than tensors, or is damaged ({reason}).",
            fix="Save model.state_dict() alone, best as .safetensors.",
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"{path}: is no state dict of tensors.")
    try:
        return {str(key): _array(value) for key, value in content.items()}
    except (TypeError, RuntimeError) as error:
        raise WeightsError(f"{path}: holds tensors that are no plain arrays ({error}).") from None


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor for numpy, which has no bfloat16."""
    plain = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: np.ndarray = plain.detach().numpy()
    return array


def _with_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Entries under `backbone.`, without what wrappers for several GPUs put in front."""
    plain = {key.removeprefix("module."): array for key, array in arrays.items()}
    return {key if key.startswith(("backbone.", "heads.")) else f"backbone.{key}": a for key, a in plain.items()}


def _current_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Entries by the names that torchvision's networks have today, as its own loaders would call them."""
    current = dict(arrays)
    for pattern, name in _RENAMED:
        current = {pattern.sub(name, key): array for key, array in current.items()}
    return current


def _children_of(name: str) -> list[str]:
    """The names of the parts of a backbone's network, in their order."""
    with torch.random.fork_rng(devices=[]):
        return [child for child, _ in build_image_backbone(name, 3, _SIZE).module.named_children()]


def _backbone_for(name: str, size: int, arrays: Mapping[str, np.ndarray]) -> Backbone:
    """A backbone with as many channels as the file's first convolution has: 1, or else 3."""
    with torch.random.fork_rng(devices=[]):
        colour = build_image_backbone(name, 3, size)
        first = arrays.get(f"backbone.{stem_name(colour.module)}.weight")
        return build_image_backbone(name, 1, size) if first is not None and first.shape[1:2] == (1,) else colour


def _input(source: WeightsSource) -> ImageInput | None:
    """How images were prepared, in numbers or by its name. InputError for numbers that cannot be."""
    if not source.mean and not source.std:
        return _INPUTS[source.normalise]
    try:
        return ImageInput(size=_SIZE, channels=3, normalise="fixed", mean=source.mean, std=source.std)
    except ValidationError as error:
        raise InputError("--mean, --std: " + "; ".join(describe(error))) from None


def _describe(source: WeightsSource, data: bytes) -> dict[str, Any]:
    """Input, origin and licence: what torchvision says of its own weights, or what the person says."""
    if source.enum is None:
        return {"input": _input(source), "trained_on": source.trained_on, "licence": source.licence}
    import torchvision  # takes seconds, and only its own weights need it

    try:
        weights = torchvision.models.get_weight(source.enum)
    except (ValueError, AttributeError, KeyError):
        raise WeightsError(f"torchvision has no weights called {source.enum!r}.") from None
    wanted = _HASH_IN_NAME.search(weights.url)
    if wanted is None or not hashlib.sha256(data).hexdigest().startswith(wanted.group(1)):
        raise WeightsError(
            f"{source.file}: is not torchvision's file for {source.enum}.",
            fix=f"Its SHA-256 must start with {wanted.group(1) if wanted else 'an unknown value'}.",
        )
    seen = weights.transforms()
    mean, std = tuple(seen.mean), tuple(seen.std)
    if source.backbone == "googlenet":  # torchvision's model turns its input into this before the first layer
        mean = std = (0.5, 0.5, 0.5)
    spec = ImageInput(size=seen.crop_size[0], channels=3, normalise="fixed", mean=mean, std=std)
    return {"input": spec, "trained_on": f"as torchvision's {source.enum}", "licence": source.licence}
