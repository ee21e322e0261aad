"""Installs the kit that this file lies in: no network, no root, and nothing but Python's own library.

    python3.11 install.py FOLDER

makes FOLDER, an environment of its own, after every file of the kit was compared with SHA256SUMS. That finds damage.
Who made the kit, and whether this file is its own, is asked before, by tools that are not part of it: see README.txt.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # the kit's folder: a json.py that was added to it would run before it is found

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

SUMS, SIGNATURE, SIGNER, FACTS, LOCK = "SHA256SUMS", "SHA256SUMS.sig", "signer.pem", "kit.json", "kit.lock"


def changed(kit: Path) -> list[str]:
    """What is not as SHA256SUMS says, a line for each file; none if the kit is whole."""
    try:
        lines = (kit / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return [f"{SUMS} is missing or cannot be read"]
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = {path.relative_to(kit).as_posix(): path for path in kit.rglob("*") if path.is_symlink() or path.is_file()}
    found = [f"{name} is missing" for name in sorted(wanted.keys() - there.keys())]
    found += [f"{name} was added" for name in sorted(there.keys() - wanted.keys() - {SUMS, SIGNATURE})]
    for name in sorted(wanted.keys() & there.keys()):
        if there[name].is_symlink() or _digest(there[name]) != wanted[name]:
            found.append(f"{name} was changed")
    return found


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def unfit(facts: dict[str, Any]) -> str:
    """Why this machine or this Python is not what the kit was made for; empty if it is."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if mine != facts["python"]:
        return f"the kit is for Python {facts['python']}, and this is {mine}: start it with python{facts['python']}"
    least, _, machine = facts["platform"].removeprefix("manylinux_2_").partition("_")
    if (sys.platform, platform.machine()) != ("linux", machine):
        return f"the kit is for Linux on {machine}, and this is {platform.system()} on {platform.machine()}"
    library, found = platform.libc_ver()
    if library != "glibc" or tuple(map(int, found.split(".")[:2])) < (2, int(least)):
        return f"the kit needs glibc 2.{least} or newer, and this system has {library or 'another C library'} {found}"
    return ""


def install(kit: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Make the environment and install all wheels of the kit into it; CalledProcessError if pip refuses.

    Hashes are those of kit.lock; no index, no setting of this machine's pip, and no cache is asked.
    """
    alone = [] if facts["torch"] != "absent" else ["--system-site-packages"]
    subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", *alone, folder], check=True)
    python = folder / "bin" / "python"
    (pip,) = (kit / "wheels").glob("pip-*.whl")
    how: list[str | Path] = [
        "--isolated",
        "--quiet",
        "--disable-pip-version-check",
        "install",
        "--no-index",
        "--no-cache-dir",
    ]
    how += ["--find-links", kit / "wheels", "--only-binary", ":all:", "--require-hashes", "--no-deps"]
    subprocess.run([python, pip / "pip", *how, "--ignore-installed", "--requirement", kit / LOCK], check=True)
    if facts["torch"] != "absent":  # what else is on a machine that brings its own torch is not ours to judge
        subprocess.run([python, "-I", "-m", "pip", "--disable-pip-version-check", "check"], check=True)
    subprocess.run([python, "-P", "-c", "import torch, fedgraft"], check=True)


def main() -> int:
    """Compare, look at the machine, install; 0 if all of it went well, 1 if the install failed, 2 if it was refused."""
    asked = argparse.ArgumentParser(description="Install fedgraft from this kit, without a network.")
    asked.add_argument("folder", type=Path, help="a new folder for the environment, such as /opt/fedgraft")
    folder = asked.parse_args().folder.absolute()
    kit = Path(__file__).resolve().parent
    if faults := changed(kit):
        return _refuse(f"this kit is not whole: {'; '.join(faults)}. Copy it again, or ask whoever made it.")
    facts = json.loads((kit / FACTS).read_text(encoding="utf-8"))
    if reason := unfit(facts):
        return _refuse(f"{reason}.")
    if folder.exists():
        return _refuse(f"{folder} exists. Choose a new folder; an upgrade goes beside the old one.")
    try:
        install(kit, folder, facts)
    except (subprocess.CalledProcessError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return _refuse(f"not installed, and {folder} removed: {error}.", code=1)
    print(f"fedgraft {facts['version']} is installed: {folder / 'bin' / 'fedgraft'}")  # noqa: T201
    return 0


def _refuse(why: str, *, code: int = 2) -> int:
    print(f"install.py: {why}", file=sys.stderr)  # noqa: T201 - nothing of fedgraft is there yet
    return code


if __name__ == "__main__":
    os.umask(0o022)  # others of this machine may use it, as with any program
    sys.exit(main())
