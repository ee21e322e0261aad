"""Architectures that were built before, so that a study is checked again without torch, which takes a second to load.

A file under fedgraft's home for each: named by a digest of the blueprint, of all of fedgraft's code and of the
libraries' versions, so that nothing is found after any of them has changed; and with a digest of its own, so that a
damaged one counts as none. Whoever has torch loaded builds anew.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from contextlib import suppress
from dataclasses import astuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedgraft.common.base.disk import oldest_first
from fedgraft.common.base.environment import code_digest
from fedgraft.common.base.files import canonical_json, home, write_atomic
from fedgraft.common.models.architecture import Architecture, Blueprint, Entry
from fedgraft.common.study.plan import Role, Tag

_MOST = 200
"""Files that are kept; the oldest make room."""


def architecture_of(blueprint: Blueprint) -> Architecture:
    """What a model built by this blueprint is made of. InputError if none can be built."""
    # With torch loaded building is quick. What a plug-in or timm builds is never remembered: its code may change.
    if "torch" not in sys.modules and (known := recall(blueprint)) is not None:
        return known
    from fedgraft.common.models.backbones.named import ships
    from fedgraft.common.models.backbones.timm_models import is_timms
    from fedgraft.common.models.initialise import build
    from fedgraft.common.models.model import describe

    built = describe(build(blueprint, seed=0))
    names = blueprint.base_models or (blueprint.backbone,)
    if all(ships(name) and not is_timms(name) for name in names) and recall(blueprint) != built:
        # A home that cannot be written costs a second the next time, and nothing else.
        with suppress(OSError, PackageNotFoundError):
            remember(blueprint, built)
    return built


def recall(blueprint: Blueprint) -> Architecture | None:
    """What was remembered; None if nothing was, by this code with these libraries, or not in one piece."""
    try:
        digest, _, content = _path(blueprint).read_bytes().partition(b"\n")
    except (OSError, PackageNotFoundError):
        return None
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    return _parsed(json.loads(content))


def remember(blueprint: Blueprint, architecture: Architecture) -> None:
    """Keep an architecture for `recall`. OSError if it cannot be written, PackageNotFoundError as `_path`."""
    path, content = _path(blueprint), canonical_json(_plain(architecture))
    write_atomic(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    for file in oldest_first(path.parent.glob("*.json"))[:-_MOST]:
        file.unlink(missing_ok=True)


def _path(blueprint: Blueprint) -> Path:
    """PackageNotFoundError if it cannot be known which torch or torchvision is installed."""
    made_by = [platform.python_version(), version("torch"), version("torchvision"), code_digest()]
    asked = canonical_json([made_by, blueprint.model_dump(mode="json")])
    return home() / "architectures" / f"{hashlib.sha256(asked).hexdigest()}.json"


def _plain(architecture: Architecture) -> dict[str, Any]:
    entries = [[key, entry.shape, entry.dtype, *astuple(entry.tag)] for key, entry in architecture.entries.items()]
    bases = [_plain(one) for one in architecture.base_models]
    return {"entries": entries, "base_models": bases, "unseparated": architecture.unseparated}


def _parsed(plain: dict[str, Any]) -> Architecture:
    entries = {
        key: Entry(tuple(shape), dtype, Tag(Role(role), *rest)) for key, shape, dtype, role, *rest in plain["entries"]
    }
    return Architecture(entries, tuple(_parsed(one) for one in plain["base_models"]), plain["unseparated"])
