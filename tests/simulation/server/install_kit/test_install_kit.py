"""A kit is built, carried and installed where there is no network; what it installs works there.

The kit of machines that bring torch themselves, as clusters and containers do: all other wheels are real, and what a
cluster's module system would offer is the torch of this environment.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedgraft import cli
from fedgraft.common.base.console.command_line import run_command
from fedgraft.common.base.files import sha256_file
from fedgraft.common.identity.keys import new_node_key, private_pem
from fedgraft.server.install_kit.lock import read_lock
from helpers.federation import ROOT
from helpers.offline import offline

pytestmark = pytest.mark.slow
MINE = f"{sys.version_info.major}.{sys.version_info.minor}"
WITH_TORCH = ("torch", "torchvision", "torchgen", "functorch", "triton", "nvidia")


@dataclass(frozen=True)
class Carried:
    kit: Path
    modules: Path
    """A folder with torch, for PYTHONPATH, as `module load` puts it there."""


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    folder = tmp_path_factory.mktemp("carried")
    (folder / "ca.key").write_bytes(private_pem(new_node_key()))
    words = ["kit", "build", "--torch", "absent", "--python", MINE, "--source", str(ROOT), "--out", str(folder / "kit")]
    assert run_command(cli.app, lambda: False, [*words, "--key", str(folder / "ca.key")]) == 0
    libraries, modules = Path(sysconfig.get_path("purelib")), folder / "modules"
    modules.mkdir()
    for path in libraries.iterdir():
        if path.name in WITH_TORCH or path.match("torch-*.dist-info") or path.match("torchvision-*.dist-info"):
            (modules / path.name).symlink_to(path)
    return Carried(folder / "kit", modules)


@pytest.fixture(scope="module")
def installed(carried: Carried) -> Path:
    folder = carried.kit.parent / "installed"
    done = offline([sys.executable, str(carried.kit / "install.py"), str(folder)], PYTHONPATH=str(carried.modules))
    assert done.returncode == 0, done.stderr
    return folder


def test_it_works_where_it_was_installed(carried: Carried, installed: Path) -> None:
    """Without a network, and with nothing of the environment that built it but torch."""
    fedgraft = str(installed / "bin" / "fedgraft")
    done = offline([fedgraft, "study", "check", "quickstart"], PYTHONPATH=str(carried.modules))
    assert done.returncode == 0, done.stdout + done.stderr
    where = "import fedgraft, numpy, flwr; print(*(one.__file__ for one in (fedgraft, numpy, flwr)))"
    said = offline([str(installed / "bin" / "python"), "-P", "-c", where], PYTHONPATH=str(carried.modules)).stdout
    assert all(Path(path).is_relative_to(installed) for path in said.split())


def test_the_bill_and_the_lock_are_of_the_files_in_it(carried: Carried) -> None:
    wheels = {sha256_file(path) for path in (carried.kit / "wheels").iterdir()}
    locked = read_lock((carried.kit / "kit.lock").read_text())
    assert {digest for _, (digest,) in locked.values()} == wheels
    bill = json.loads((carried.kit / "sbom.json").read_text())
    listed = [*bill["components"], bill["metadata"]["component"]]
    assert {one["hashes"][0]["content"] for one in listed} == wheels
    ours = read_lock((ROOT / "requirements.lock").read_text())
    for name, (version, (digest,)) in locked.items():
        assert name in ("fedgraft", "pip") or (version == ours[name][0] and digest in ours[name][1])


def test_a_wheel_with_other_content_is_refused_by_name_though_the_sums_fit(carried: Carried, tmp_path: Path) -> None:
    """Somebody who changes a wheel and its digest in SHA256SUMS still has the lock against him: pip takes no other."""
    kit = tmp_path / "kit"
    shutil.copytree(carried.kit, kit, copy_function=os.link)
    (wheel,) = (kit / "wheels").glob("h11-*.whl")
    before = sha256_file(wheel)
    content = wheel.read_bytes()
    wheel.unlink()
    wheel.write_bytes(content)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("h11/owned.py", "")
    words = [sys.executable, str(kit / "install.py"), str(tmp_path / "installed")]
    refused = offline(words)
    assert refused.returncode == 2
    assert f"wheels/{wheel.name} was changed" in refused.stderr
    sums = (kit / "SHA256SUMS").read_text()
    (kit / "SHA256SUMS").unlink()
    (kit / "SHA256SUMS").write_text(sums.replace(before, sha256_file(wheel)))
    again = offline(words)
    assert again.returncode == 1
    assert "h11" in again.stderr
    assert "DO NOT MATCH THE HASHES" in again.stderr
    assert not (tmp_path / "installed").exists()
