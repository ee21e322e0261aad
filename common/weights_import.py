"""Taking in weights from elsewhere: safetensors, state-dict .pth, or a torchvision weights file by its enum name."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from common.backbones import head_name
from common.errors import InputError, WeightsError
from common.files import home, parse_tensors
from common.inputs import ImageInput
from common.model import build_model
from common.weights import KeyReport, WeightsManifest, graft, save_weights

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")


@dataclass(frozen=True)
class Source:
    """Where weights come from: a file, and what a person says of it. `enum` names a member of torchvision's weights."""

    file: Path
    backbone: str
    licence: str
    trained_on: str = "not stated"
    enum: str | None = None


def import_weights(source: Source, name: str) -> tuple[WeightsManifest, KeyReport]:
    """Check a weights file against its backbone and keep it under fedgraft's home as `name`.

    WeightsError for a pickle with anything but tensors, a wrong digest, or entries that do not fit, all listed.
    """
    data = _read(source.file)
    described = _describe(source, data)
    arrays = _tensors(source.file, data)
    spec = described["input"]
    assert isinstance(spec, ImageInput)
    model = build_model(source.backbone, {}, channels=_channels(arrays), seed=0, size=spec.size)
    backbone = _drop_head(_with_prefix(arrays), source.backbone)
    report = graft(model, backbone, str(source.file))
    facts = described | {
        "id": name,
        "backbone": source.backbone,
        "classes": {},
        "synthetic": False,
        "how": f"imported from {source.file.name}, sha256 {hashlib.sha256(data).hexdigest()}",
    }
    manifest = save_weights(home() / "weights" / name, backbone, facts)
    left = tuple(sorted(set(_with_prefix(arrays)) - set(backbone)))
    return manifest, KeyReport(report.loaded, report.adapted, (), left)


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
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path}: holds more than tensors, or is damaged ({reason}).",
            fix="Save model.state_dict() alone, best as .safetensors.",
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"{path}: is no state dict of tensors.")
    return {str(key): value.detach().numpy() for key, value in content.items()}


def _with_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Entries under `backbone.`, without what wrappers for several GPUs put in front."""
    plain = {key.removeprefix("module."): array for key, array in arrays.items()}
    return {key if key.startswith(("backbone.", "heads.")) else f"backbone.{key}": a for key, a in plain.items()}


def _drop_head(arrays: Mapping[str, np.ndarray], backbone: str) -> dict[str, np.ndarray]:
    """Without the classifier's last layer, and without auxiliary classifiers."""
    gone = ["heads.", "backbone.aux1.", "backbone.aux2."]
    if backbone in torchvision.models.list_models(torchvision.models):
        with torch.device("meta"):
            options = {"init_weights": False} if backbone == "googlenet" else {}
            whole = torchvision.models.get_model(backbone, weights=None, **options)
        gone.append(f"backbone.{head_name(whole)}.")
    return {key: array for key, array in arrays.items() if not key.startswith(tuple(gone))}


def _channels(arrays: Mapping[str, np.ndarray]) -> int:
    first = next((array for array in arrays.values() if array.ndim == 4), None)
    if first is None or first.shape[1] not in (1, 3):
        raise WeightsError("The file has no first convolution for 1 or 3 channels.")
    return int(first.shape[1])


def _describe(source: Source, data: bytes) -> dict[str, Any]:
    """Input, origin and licence: what torchvision says of its own weights, or what the person says."""
    if source.enum is None:
        spec = ImageInput(
            size=224, channels=3, normalise="fixed", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        )
        return {"input": spec, "trained_on": source.trained_on, "licence": source.licence}
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
    spec = ImageInput(size=seen.crop_size[0], channels=3, normalise="fixed", mean=tuple(seen.mean), std=tuple(seen.std))
    return {"input": spec, "trained_on": f"as torchvision's {source.enum}", "licence": source.licence}
