"""The wheels of a kit: fetched by pip to the locked digests, and looked at before they are carried into a hospital."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from itertools import pairwise
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import sha256_file
from fedgraft.server.install_kit.lock import Locked, lock_text, normalised

_WITH_TORCH = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True)
class TargetMachine:
    """What a kit is made for: Python as "3.11", and the newest manylinux platform whose wheels run there."""

    python: str
    platform: str

    def tags(self) -> list[str]:
        """All platforms whose wheels run there, newest first; InputError if it is none of Linux."""
        found = re.fullmatch(r"manylinux_2_(\d+)_(x86_64|aarch64)", self.platform)
        if found is None or not re.fullmatch(r"3\.\d+", self.python):
            fix = "Kits are for Linux, as --python 3.11 --platform manylinux_2_31_x86_64."
            raise InputError(f"python {self.python}, platform {self.platform}: no kit is made for that.", fix=fix)
        least, machine = int(found[1]), found[2]
        tags = []
        for minor in range(least, 4, -1):
            tags.append(f"manylinux_2_{minor}_{machine}")
            if minor in _OLD_NAMES:
                tags.append(f"{_OLD_NAMES[minor]}_{machine}")
        return tags

    def markers(self) -> dict[str, str]:
        """What markers of requirements ask about there."""
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "platform_machine": self.platform.partition("_2_")[2].partition("_")[2],
            "sys_platform": "linux",
            "os_name": "posix",
            "extra": "",
        }


@dataclass(frozen=True)
class Wheel:
    """A wheel of a kit: what it says of itself, and the digest of the file."""

    path: Path
    name: str
    version: str
    requires: tuple[str, ...]
    python: str
    sha256: str


def fetch(locked: Locked, machine: TargetMachine, into: Path) -> None:
    """Fetch the file of every entry, with pip as it is set up here; RunError if one is not to be had, or another."""
    with tempfile.TemporaryDirectory() as scratch:
        lock = Path(scratch, "lock")
        lock.write_text(lock_text(locked), encoding="utf-8")
        _pip("download", *_for(machine), "--no-deps", "--require-hashes", "--dest", into, "--requirement", lock)


def fetch_torch(locked: Locked, build: str, index: str | None, machine: TargetMachine, into: Path) -> None:
    """Fetch torch and torchvision as another build ("cpu", "cu128"), and what these alone need.

    No lock has their digests: they are what the index serves today. Whatever the lock has keeps its version.
    """
    wanted = [f"{name}=={locked[name][0].partition('+')[0]}+{build}" for name in ("torch", "torchvision")]
    others = "".join(f"{name}=={version}\n" for name, (version, _) in locked.items() if not goes_with_torch(name))
    where = [] if index is None else ["--extra-index-url", index]
    with tempfile.TemporaryDirectory() as scratch:
        bounds, found = Path(scratch, "bounds"), Path(scratch, "found")
        bounds.write_text(others, encoding="utf-8")
        _pip("download", *_for(machine), *where, "--constraint", bounds, "--dest", found, *wanted)
        for path in found.glob("*.whl"):
            if not (into / path.name).exists():
                path.replace(into / path.name)


def build_own(source: Path, tools: Locked, into: Path) -> None:
    """Build fedgraft's own wheel from its checkout, with the locked tools and no others."""
    with tempfile.TemporaryDirectory() as scratch:
        lock, place = Path(scratch, "lock"), Path(scratch, "tools")
        lock.write_text(lock_text(tools), encoding="utf-8")
        _pip("install", "--require-hashes", "--only-binary", ":all:", "--no-deps", "--target", place, "-r", lock)
        how: list[str | Path] = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", into, source]
        _pip("wheel", *how, environment={"PYTHONPATH": str(place)})


def goes_with_torch(name: str) -> bool:
    """Whether a package is torch, or is there since one build of torch asks for it."""
    return _WITH_TORCH.fullmatch(name) is not None


def look(folder: Path) -> list[Wheel]:
    """All wheels of a folder, by name; RunError for one that cannot be read, or of which there are two."""
    found = sorted((_read(path) for path in folder.glob("*.whl")), key=lambda wheel: wheel.name)
    for one, next_one in pairwise(found):
        if one.name == next_one.name:
            raise RunError(f"{one.path.name} and {next_one.path.name}: two wheels of one package.")
    return found


def lacking(wheels: Sequence[Wheel], machine: TargetMachine, absent: Sequence[str] = ()) -> list[str]:
    """What wheels ask for and the kit has not, in words, so that it is found here and not in a hospital.

    `absent` are packages that the machine brings itself.
    """
    there = {wheel.name: wheel.version for wheel in wheels}
    found = [
        f"{wheel.name} {wheel.version} does not run on Python {machine.python} ({wheel.python})"
        for wheel in wheels
        if not SpecifierSet(wheel.python).contains(f"{machine.python}.99")
    ]
    for wheel, needed in _needs(wheels, machine.markers()):
        name = normalised(needed.name)
        if name in absent:
            continue
        if name not in there:
            found.append(f"{wheel.name} needs {needed.name}, which is not in the kit")
        elif not needed.specifier.contains(there[name], prereleases=True):
            found.append(f"{wheel.name} needs {needed.name} {needed.specifier}, and the kit has {there[name]}")
    return found


def _needs(wheels: Sequence[Wheel], markers: Mapping[str, str]) -> Iterator[tuple[Wheel, Requirement]]:
    for wheel in wheels:
        for line in wheel.requires:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate(dict(markers)):
                yield wheel, needed


def _read(path: Path) -> Wheel:
    try:
        with zipfile.ZipFile(path) as archive:
            (inner,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            said = HeaderParser().parsestr(archive.read(inner).decode("utf-8"))
    except (OSError, ValueError, zipfile.BadZipFile):
        raise RunError(f"{path}: is no wheel.") from None
    requires = tuple(said.get_all("Requires-Dist") or ())
    python = said["Requires-Python"] or ""
    return Wheel(path, normalised(said["Name"]), said["Version"], requires, python, sha256_file(path))


def _for(machine: TargetMachine) -> list[str]:
    tags = [word for tag in machine.tags() for word in ("--platform", tag)]
    return ["--only-binary", ":all:", "--implementation", "cp", "--python-version", machine.python, *tags]


def _pip(*words: str | Path, environment: Mapping[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *map(str, words)]
    whole = os.environ | dict(environment or {})
    done = subprocess.run(command, env=whole, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines()]
        told = [line for line in lines if line.startswith(("ERROR", "error", "The user")) or "No module" in line]
        fix = "Look at pip's settings (`pip config list`): kits are built where pip reaches an index."
        raise RunError(f"pip {words[0]} failed: {' '.join(told) or done.stderr.strip()[-300:]}", fix=fix)
