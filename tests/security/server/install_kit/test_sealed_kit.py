"""Somebody changes an install kit on its way: every file is named, by `kit verify` and by the kit's own installer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.common.identity.keys import fingerprint, new_node_key, public_pem, sign
from fedgraft.server.install_kit import build, install
from fedgraft.server.install_kit.build import seal, signer_of

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
FACTS = {"format": 1, "version": "0.2.0", "python": "3.11", "platform": "manylinux_2_31_x86_64", "torch": "locked"}
ONE, TWO, EVIL = (f"wheels/{name}-1.0-py3-none-any.whl" for name in ("one", "two", "evil"))
OWNED = "import os, pathlib\npathlib.Path(__file__).with_name('owned').touch()\nos._exit(0)\n"
Change = Callable[[Path], object]


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A kit of two wheels that nobody installs here."""
    folder = tmp_path / "kit"
    (folder / "wheels").mkdir(parents=True)
    for name in ("one", "two"):
        (folder / "wheels" / f"{name}-1.0-py3-none-any.whl").write_bytes(name.encode() * 100)
    (folder / "kit.json").write_text(json.dumps(FACTS))
    shutil.copy(str(install.__file__), folder / "install.py")
    seal(folder, new_node_key())
    return folder


def resealed(kit: Path) -> None:
    (kit / ONE).write_bytes(b"owned")
    seal(kit, new_node_key())


def new_sums(kit: Path) -> None:
    """The digests fit again, the signature is that of before."""
    before = (kit / install.SIGNATURE).read_bytes()
    (kit / ONE).write_bytes(b"owned")
    seal(kit, new_node_key())
    (kit / install.SIGNATURE).write_bytes(before)


def linked(kit: Path) -> None:
    """What it leads to is as it was signed, and can be another a moment later."""
    wheel = kit / ONE
    wheel.rename(kit.parent / "elsewhere.whl")
    wheel.symlink_to(kit.parent / "elsewhere.whl")


CHANGES: dict[str, tuple[Change, str, bool]] = {
    "a wheel": (lambda kit: (kit / TWO).write_bytes(b"x"), f"{TWO} was changed", True),
    "a wheel gone": (lambda kit: (kit / ONE).unlink(), f"{ONE} is missing", True),
    "a wheel more": (lambda kit: (kit / EVIL).write_bytes(b"x"), f"{EVIL} was added", True),
    "a link": (linked, f"{ONE} was changed", True),
    "the lock": (lambda kit: (kit / "kit.json").write_text("{}"), "kit.json was changed", True),
    "a module that the installer imports": (
        lambda kit: (kit / "argparse.py").write_text(OWNED),
        "argparse.py was added",
        True,
    ),
    "bytes after the key": (
        lambda kit: (kit / "signer.pem").write_bytes((kit / "signer.pem").read_bytes() + b"\xff"),
        "signer.pem was changed",
        True,
    ),
    "no sums": (lambda kit: (kit / "SHA256SUMS").unlink(), "SHA256SUMS is missing", True),
    "no signature": (lambda kit: (kit / "SHA256SUMS.sig").unlink(), "SHA256SUMS.sig or signer.pem is missing", False),
    "new sums": (new_sums, "SHA256SUMS is not signed by signer.pem", False),
    "all of it": (resealed, "it is signed by another", False),
}
"""What is done, what is said of it, and whether the installer, which asks for no signature, must notice as well."""


@pytest.mark.parametrize("way", CHANGES)
def test_every_change_is_named(kit: Path, command, way: str) -> None:
    change, words, _ = CHANGES[way]
    told = signer_of(kit)
    assert command("kit", "verify", str(kit), "--fingerprint", told)[0] == 0
    change(kit)
    code, _, err = command("kit", "verify", str(kit), "--fingerprint", told)
    assert code == 1
    assert words in err


@pytest.mark.parametrize("way", [way for way, (_, _, noticed) in CHANGES.items() if noticed])
def test_the_installer_installs_nothing_of_a_kit_that_was_changed(kit: Path, way: str) -> None:
    change, words, _ = CHANGES[way]
    change(kit)
    folder = kit.parent / "installed"
    person = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # as fedgraft sets it
    typed = [sys.executable, kit / "install.py", folder]
    done = subprocess.run(typed, env=person, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert not folder.exists()
    assert not (kit / "owned").exists()


def test_the_tools_of_any_machine_say_who_signed(kit: Path) -> None:
    """The commands of the guide, which run nothing of the kit; the fingerprint is the one that people read out."""
    key = new_node_key()
    seal(kit, key)
    assert openssl(kit) == (0, fingerprint(public_pem(key).decode()).replace("-", ""))
    (kit / install.SIGNATURE).write_bytes(sign(new_node_key(), (kit / install.SUMS).read_bytes()))
    assert openssl(kit)[0] != 0


def openssl(kit: Path) -> tuple[int, str]:
    """What docs/how_to/install_kit.md types before anything of the kit is run; README.txt of the kit says the same."""
    page = (ROOT / "docs" / "how_to" / "install_kit.md").read_text(encoding="utf-8")
    shown, verified, compared = re.findall(r"^(?:openssl|sha256sum) .*$", page, re.MULTILINE)
    assert all(f"   {line}\n" in build._README for line in (shown, verified, compared))
    told = subprocess.run(shown, shell=True, cwd=kit, capture_output=True, text=True, check=True).stdout.strip()
    assert subprocess.run(compared, shell=True, cwd=kit, capture_output=True, check=False).returncode == 0
    return subprocess.run(verified, shell=True, cwd=kit, capture_output=True, check=False).returncode, told


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("python", "3.99", "the kit is for Python 3.99"),
        ("platform", "manylinux_2_31_riscv", "the kit is for Linux on riscv"),
        ("platform", f"manylinux_2_99_{os.uname().machine}", "the kit needs glibc 2.99 or newer"),
    ],
)
def test_a_machine_that_the_kit_is_not_for_is_told_so(key: str, value: str, words: str) -> None:
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    fits = {"python": mine, "platform": f"manylinux_2_17_{os.uname().machine}"}
    assert install.unfit(fits) == ""
    assert install.unfit(fits | {key: value}).startswith(words)
