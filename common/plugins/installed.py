"""What of a distribution is installed here: its version, and a digest of the files that would run.

RECORD, which the installer wrote, says which files there should be and what they should hold; neither is believed. All
files are read, and so are those that lie among them and are not listed, since Python would import them as well. What
depends on the machine (RECORD itself, scripts, compiled files) is left out: the same wheel has one digest everywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse

from fedgraft.common.base.errors import InputError

_FACTS = ("METADATA", "entry_points.txt")
"""What counts of the folder in which a distribution is described."""
_CODE = (".py", ".so", ".pyd", ".pyc")
_REINSTALL = "Install it again from the wheel that you trust."


def version_of(name: str) -> str | None:
    """The version that is installed; None if the distribution is not."""
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def digest_of(name: str) -> str:
    """SHA-256 over the paths and contents of a distribution's files, 64 hex digits.

    Of one that was installed in place (`pip install -e`) over the code in its project's folder. InputError if it is not
    installed, a file is not what the installer wrote, or Python would import its modules from elsewhere.
    """
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise InputError(f"{name} is not installed.", fix=f"pip install {name}") from None
    files = dict(_in_place(found) or _installed(found))
    for module in sorted({point.module.partition(".")[0] for point in found.entry_points if _is_ours(point.group)}):
        _demand_found_there(name, module, set(files.values()))
    whole = hashlib.sha256()
    for place, path in sorted(files.items()):
        whole.update(place.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def digest_of_code(place: Path) -> str:
    """SHA-256 of a file, or of all Python files in a package's folder."""
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for path in sorted(place.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).digest()
        whole.update(path.relative_to(place).as_posix().encode() + b"\0" + content)
    return whole.hexdigest()


def _is_ours(group: str) -> bool:
    return group.startswith("fedgraft.")


def _installed(found: Distribution) -> Iterator[tuple[str, Path]]:
    """The files that an installer wrote, and what else lies in the folders of its packages, by their place."""
    name = found.metadata["Name"]
    listed = [one for one in found.files or () if _counts(one)]
    if not listed:
        raise InputError(f"{name}: does not say which files it has, so nobody can tell what it is.", fix=_REINSTALL)
    for one in listed:
        path = Path(str(one.locate()))
        if not path.is_file():
            raise InputError(f"{name}: {path} is gone.", fix=_REINSTALL)
        if one.hash is not None and _hash(path, one.hash.mode) != one.hash.value.rstrip("="):
            raise InputError(f"{name}: {path} is not what was installed.", fix=_REINSTALL)
        yield one.as_posix(), path
    root = Path(str(found.locate_file("")))
    for folder in sorted({one.parts[0] for one in listed if len(one.parts) > 1 and not _describes(one)}):
        for path in _code_below(root / folder):
            yield path.relative_to(root).as_posix(), path


def _counts(one: PackagePath) -> bool:
    if one.parts[0] == ".." or "__pycache__" in one.parts:
        return False
    return one.name in _FACTS if _describes(one) else True


def _describes(one: PackagePath) -> bool:
    return one.parts[0].endswith((".dist-info", ".egg-info"))


def _hash(path: Path, mode: str) -> str:
    return base64.urlsafe_b64encode(hashlib.new(mode, path.read_bytes()).digest()).rstrip(b"=").decode()


def _in_place(found: Distribution) -> list[tuple[str, Path]]:
    """The code in the project's folder, of a distribution that was installed in place; nothing of any other."""
    facts = json.loads(found.read_text("direct_url.json") or "{}")
    if not facts.get("dir_info", {}).get("editable"):
        return []
    root = Path(unquote(urlparse(str(facts["url"])).path))
    return [(path.relative_to(root).as_posix(), path) for path in _code_below(root)]


def _code_below(root: Path) -> Iterator[Path]:
    """Files that Python might import, in all folders but hidden ones, caches and environments of their own."""
    for here, folders, names in os.walk(root):
        kept = [one for one in folders if one != "__pycache__" and not one.startswith(".")]
        folders[:] = sorted(one for one in kept if not Path(here, one, "pyvenv.cfg").exists())
        yield from (Path(here, name) for name in sorted(names) if name.endswith(_CODE))


def _demand_found_there(name: str, module: str, files: set[Path]) -> None:
    """InputError unless importing the module would run one of these files."""
    spec = find_spec(module)
    origin = spec.origin if spec is not None else None
    if origin is None or Path(origin).resolve() not in {path.resolve() for path in files}:
        raise InputError(
            f"{name}: `import {module}` would run {origin or 'nothing'}, which is none of its files.",
            fix="Remove what lies in its way, or install it again.",
        )
