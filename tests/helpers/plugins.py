"""Distributions for tests: made into wheels and installed without any index, as pip would leave them."""

from __future__ import annotations

import base64
import hashlib
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fedgraft.common.plugins import registry

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"


def wheel_of(project: Path, out: Path, version: str | None = None) -> Path:
    """A wheel of the project in this folder, in the folder `out`; of another version if one is given."""
    facts = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    files = {
        path.relative_to(project).as_posix(): path.read_bytes()
        for path in sorted(project.rglob("*.py"))
        if "__pycache__" not in path.parts
    }
    return make_wheel(out, facts["name"], version or facts["version"], facts["entry-points"], files)


def make_wheel(
    out: Path, name: str, version: str, points: Mapping[str, Mapping[str, str]], files: Mapping[str, bytes]
) -> Path:
    """A wheel with these files and entry points by group."""
    described = f"{name.replace('-', '_')}-{version}"
    groups = [[f"[{group}]", *(f"{key} = {value}" for key, value in own.items())] for group, own in points.items()]
    inside = dict(files) | {
        f"{described}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{described}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{described}.dist-info/entry_points.txt": "\n".join(line for group in groups for line in group).encode(),
    }
    record = [f"{path},sha256={_hash(content)},{len(content)}" for path, content in inside.items()]
    inside[f"{described}.dist-info/RECORD"] = "\n".join([*record, f"{described}.dist-info/RECORD,,"]).encode()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{described}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for place, content in inside.items():
            wheel.writestr(place, content)
    return path


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def install(wheel: Path, folder: Path) -> Path:
    """Unpack a wheel where Python is to look for it, which is what `pip install --target` does; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing is registered or loaded, and what the test loads is gone afterwards."""
    known = set(sys.modules)
    for name, empty in (("_registered", {}), ("_places", []), ("_digests", {}), ("_loading", [])):
        monkeypatch.setattr(registry, name, empty)
    yield monkeypatch
    for name in set(sys.modules) - known:
        if name.startswith(("fedgraft_example", "fedgraft_plugin_", "own_")):
            del sys.modules[name]
