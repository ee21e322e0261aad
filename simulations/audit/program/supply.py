"""What was installed: as it was packed; and in a checkout, what a hospital installs from is fixed to the byte.

`supply` says which of the two it could look at. What pip makes of the lock is tried by the project's own tests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from fedgraft.client.attacks.measurement import Measurement
from fedgraft.common.base.files import PACKAGE
from fedgraft.simulations.audit.findings import AttackAttempt

_NAME, _CLAIM = "what was installed", "what runs is what was packed, or what is installed from it is fixed to the byte"
_ENTRY = re.compile(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.!+-]*) \\")
_HASH = re.compile(r"    --hash=sha256:([0-9a-f]{64})( \\)?")
_KEPT_OUT = {".dockerignore": ("**", "**/*.key", "**/*.code", "**/kits"), ".gitignore": ("kits/", "*.code", "/runs/")}
_LOCK, _BUILD_LOCK, _BILL = "requirements.lock", "deploy/build.lock", "deploy/sbom.json"
_IMAGE, _PROJECT = "deploy/Dockerfile", "pyproject.toml"
LOOKED_AT = (_LOCK, _BUILD_LOCK, _BILL, _IMAGE, _PROJECT, *_KEPT_OUT)
"""Files of a checkout."""

Locked = dict[str, tuple[str, list[str]]]
"""By name the version and the digests."""


def supply(stage: str) -> AttackAttempt:
    """The check, yet to be carried out; with nothing to try where fedgraft is neither a wheel nor a checkout."""
    root, packed = _checkout(), _packed()
    if root is not None:
        measure = partial(
            _measured, partial(faults_of_checkout, root), "lock, bill, image and ignored files of the checkout"
        )
    elif packed is not None:
        measure = partial(_measured, partial(changed_files, packed), "every file, against the record of the wheel")
    else:
        words = "fedgraft runs from files of which nobody has said what they should be: neither a wheel nor the project"
        return AttackAttempt(stage, _NAME, _CLAIM, None, words)
    return AttackAttempt(stage, _NAME, _CLAIM, measure)


def _measured(look: Callable[[], Iterator[str]], what: str) -> Measurement:
    found = list(look())
    return Measurement(float(len(found)), 0.0, "; ".join(found) or f"{what}: nothing is wrong")


def _checkout() -> Path | None:
    """The project that this package is links into, if it is."""
    root = (PACKAGE / "common").resolve().parent
    return root if (root / "pyproject.toml").is_file() and (root / "src").is_dir() else None


def _packed() -> Distribution | None:
    """What pip knows of the package, if pip has put its files there."""
    try:
        found = distribution(PACKAGE.name)
    except PackageNotFoundError:
        return None
    return found if any(path.parts[0] == PACKAGE.name for path in found.files or ()) else None


def changed_files(packed: Distribution) -> Iterator[str]:
    """What is not as the wheel had it: files that were changed, that are gone, or that nobody packed."""
    known = {Path(str(file.locate())): file.hash for file in packed.files or () if file.parts[0] == PACKAGE.name}
    for path, digest in known.items():
        if path.suffix == ".pyc":
            continue
        if not path.is_file():
            yield f"{path} is gone"
        elif digest is not None and digest.value != _as_recorded(path, digest.mode):
            yield f"{path} was changed"
    folder = Path(str(packed.locate_file(PACKAGE.name)))
    yield from (f"{path} was put there" for path in sorted(folder.rglob("*.py")) if path not in known)


def _as_recorded(path: Path, mode: str) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, mode).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def faults_of_checkout(root: Path) -> Iterator[str]:
    """What is wrong with what a hospital installs from the project in `root`, or builds an image of."""
    try:
        texts = {name: (root / name).read_text(encoding="utf-8") for name in LOOKED_AT}
        listed, needed = _listed(json.loads(texts[_BILL])), set(_needed(tomllib.loads(texts[_PROJECT])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"a file is missing or damaged ({type(error).__name__}: {error})"
        return
    for name in (_LOCK, _BUILD_LOCK):
        yield from (f"{name}: {line} is not fixed to its bytes" for line in _floating(texts[name]))
    locked = _locked(texts[_LOCK])
    yield from (f"{name} is needed, and not locked" for name in sorted(needed - locked.keys()))
    if listed != locked:
        yield "the bill of materials is not that of the lock"
    yield from _faults_of_image(texts[_IMAGE])
    for name, wanted in _KEPT_OUT.items():
        rules = texts[name].splitlines()
        yield from (f"{name} does not keep {rule} out" for rule in wanted if rule not in rules)


def _faults_of_image(image: str) -> Iterator[str]:
    bases = re.findall(r"^FROM (\S+)", image, re.MULTILINE)
    yield from (f"the image is built on {base}, whatever that is" for base in bases if "@sha256:" not in base)
    for command in re.findall(r"\bpip (?:install|wheel|download)\b[^&\n]*", re.sub(r"\\\n", " ", image)):
        if "--require-hashes" not in command and "--no-index" not in command:
            yield f"the image takes what a registry gives: {' '.join(command.split())}"


def _floating(lock: str) -> Iterator[str]:
    """Lines that are neither a version nor a digest, and versions without one."""
    for entry in re.split(r"\n(?=\S)", lock.rstrip("\n")):
        first, *digests = entry.splitlines() or [""]
        if not _ENTRY.fullmatch(first) or not digests or not all(map(_HASH.fullmatch, digests)):
            yield first.rstrip(" \\")


def _locked(lock: str) -> Locked:
    found: Locked = {}
    for line in lock.splitlines():
        if entry := _ENTRY.fullmatch(line):
            found[_plain(entry[1])] = (entry[2], digests := [])
        elif digest := _HASH.fullmatch(line):
            digests.append(digest[1])
    return {name: (version, sorted(own)) for name, (version, own) in found.items()}


def _needed(project: Any) -> Iterator[str]:
    """What the project itself asks for."""
    yield from (_plain(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in project["project"]["dependencies"])


def _listed(bill: Any) -> Locked:
    return {
        _plain(one["name"]): (one["version"], sorted(digest["content"] for digest in one["hashes"]))
        for one in bill["components"]
    }


def _plain(name: str) -> str:
    """A package's name as all tools write it."""
    return re.sub(r"[-_.]+", "-", name).lower()
