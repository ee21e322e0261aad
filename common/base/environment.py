"""What a run was made with, for whoever wants to repeat it."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedgraft.common.base.files import PACKAGE

_PACKAGES = (
    "fedgraft",
    "flwr",
    "torch",
    "torchvision",
    "opacus",
    "pydicom",
    "numpy",
    "scipy",
    "scikit-learn",
    "ray",
)
_OURS = ("common", "client", "server", "simulations")


def environment(seed: int, engine: str) -> dict[str, Any]:
    """Versions, device, threads and a digest of the code; nothing about the person or the machine's name."""
    import torch  # takes a second, and the digest of the code is asked for without it

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "seed": seed,
        "engine": engine,
        "code_digest": code_digest(),
    }


def code_digest() -> str:
    """SHA-256 over the project's Python files."""
    root = PACKAGE
    digest = hashlib.sha256()
    for package in _OURS:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def fedgraft_version() -> str:
    """The installed version, or "unknown" when run from a bare tree."""
    return _version("fedgraft") or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
