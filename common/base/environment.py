"""What a run was made with, for whoever wants to repeat it; and the memory of the machine that it runs on."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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


def memory_bytes() -> tuple[float, float]:
    """Memory in all and free, of the machine or of the container if that has less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = free = float(page * os.sysconf("SC_PHYS_PAGES"))
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = float(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        if limit.isdigit() and int(limit) < total:
            total = float(limit)
            free = min(free, total - used)
    except (OSError, KeyError, ValueError):  # no such thing on this system: the machine's memory counts
        pass
    return total, free


def give_back() -> None:
    """Give freed memory back to the system, pieces between others too: over many sites they add up."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def fedgraft_version() -> str:
    """The installed version, or "unknown" when run from a bare tree."""
    return _version("fedgraft") or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
