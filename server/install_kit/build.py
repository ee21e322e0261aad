"""Building an install kit, signing it, and asking whether one is as it was signed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import read_json, sha256_file
from fedgraft.common.identity.keys import (
    NodeKey,
    fingerprint,
    is_fingerprint_of,
    load_node_key,
    load_node_public,
    public_pem,
    sign,
    signed,
)
from fedgraft.server.install_kit import install
from fedgraft.server.install_kit.bill import bill_of_kit
from fedgraft.server.install_kit.lock import Locked, lock_text, read_lock
from fedgraft.server.install_kit.wheels import (
    TargetMachine,
    Wheel,
    build_own,
    fetch,
    fetch_torch,
    goes_with_torch,
    lacking,
    look,
)

_README = """\
fedgraft {version} for Python {python} on Linux ({platform}), to be installed without a network and without root.

1. Who made this kit? Ask the one who says so for the fingerprint, another way than the kit came, and compare:

   openssl pkey -pubin -in signer.pem -outform DER | sha256sum | cut -c 1-32
   openssl dgst -sha384 -verify signer.pem -signature SHA256SUMS.sig SHA256SUMS
   sha256sum --check --quiet SHA256SUMS

   The first shows the fingerprint, the second says "Verified OK", the third says nothing: only then go on.
   Where fedgraft is installed, `fedgraft kit verify . --fingerprint FINGERPRINT` does all of it.

2. Install it into a new folder:

   python{python} install.py /opt/fedgraft

sbom.json is the bill of materials (CycloneDX), kit.lock has every package with the digest of its file.
"""


@dataclass(frozen=True)
class KitRequest:
    """What was asked of `fedgraft kit build`.

    `torch` is "locked", another build of it ("cpu", "cu128") that the `index` has, or "absent" where machines bring it.
    """

    source: Path
    out: Path
    machine: TargetMachine
    key: Path
    torch: str = "locked"
    index: str | None = None


def build_kit(asked: KitRequest) -> str:
    """Write the kit into a new folder and give its signer's fingerprint. RunError names what pip could not get."""
    if not re.fullmatch(r"locked|absent|cpu|cu\d{3}", asked.torch):
        raise InputError(f"--torch {asked.torch}: is none of locked, cpu, cu128 and the like, absent.")
    if asked.out.exists():
        raise InputError(f"{asked.out} exists.", fix="Give a new folder with --out.")
    asked.machine.tags()
    locked, tools = (_lock(asked.source / name) for name in ("requirements.lock", "deploy/build.lock"))
    whole = read_json(asked.source / "deploy" / "sbom.json")
    key = _key(asked.key)
    demand_place(asked.out)
    try:
        wheels = _gather(asked, locked, tools)
        (version,) = [wheel.version for wheel in wheels if wheel.name == "fedgraft"]
        facts = {
            "format": 1,
            "version": version,
            "python": asked.machine.python,
            "platform": asked.machine.platform,
            "torch": asked.torch,
        }
        _write(asked.out, facts, wheels, bill_of_kit(whole, wheels))
        seal(asked.out, key)
    except BaseException:
        shutil.rmtree(asked.out, ignore_errors=True)
        raise
    return fingerprint(public_pem(key).decode())


def seal(kit: Path, key: NodeKey) -> None:
    """Write the digests of all files of a kit and their signature; what was sealed before is sealed anew."""
    (kit / install.SIGNER).write_bytes(public_pem(key))
    names = sorted(path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file())
    listed = [name for name in names if name not in (install.SUMS, install.SIGNATURE)]
    sums = "".join(f"{sha256_file(kit / name)}  {name}\n" for name in listed).encode()
    (kit / install.SUMS).write_bytes(sums)
    (kit / install.SIGNATURE).write_bytes(sign(key, sums))


def faults(kit: Path, told: str | None) -> list[str]:
    """What is wrong with a kit, in words; none if all of it is as the owner of the key `told` signed it.

    `told` is a fingerprint; None asks only whether the kit is whole, and signed by the key that it names.
    """
    found = install.changed(kit)
    try:
        pem, sums = (kit / install.SIGNER).read_bytes(), (kit / install.SUMS).read_bytes()
        signature = (kit / install.SIGNATURE).read_bytes()
        public = load_node_public(pem, install.SIGNER)
    except (OSError, InputError):
        return [*found, f"{install.SIGNATURE} or {install.SIGNER} is missing, or no signature"]
    if not signed(public, sums, signature):
        found.append(f"{install.SUMS} is not signed by {install.SIGNER}")
    if told is not None and not is_fingerprint_of(told, pem.decode()):
        found.append(f"it is signed by another: {fingerprint(pem.decode())}")
    return found


def signer_of(kit: Path) -> str:
    """The fingerprint of the key that a kit names, believed or not; InputError if it names none."""
    try:
        pem = (kit / install.SIGNER).read_bytes()
    except OSError as error:
        raise InputError(f"{kit}: is no install kit: {install.SIGNER}: {error.strerror}.") from None
    load_node_public(pem, str(kit / install.SIGNER))
    return fingerprint(pem.decode())


def _gather(asked: KitRequest, locked: Locked, tools: Locked) -> list[Wheel]:
    """All wheels of the kit, in its folder; RunError if one asks for what is not there."""
    wheels = asked.out / "wheels"
    wheels.mkdir(parents=True)
    wanted = {name: entry for name, entry in locked.items() if asked.torch == "locked" or not goes_with_torch(name)} | {
        "pip": tools["pip"]
    }
    fetch(wanted, asked.machine, wheels)
    if asked.torch not in ("locked", "absent"):
        fetch_torch(locked, asked.torch, asked.index, asked.machine, wheels)
    build_own(asked.source, {name: entry for name, entry in tools.items() if name != "pip"}, wheels)
    found = look(wheels)
    brought = ("torch", "torchvision") if asked.torch == "absent" else ()
    if gone := lacking(found, asked.machine, brought):
        raise RunError(f"the kit is not whole: {'; '.join(gone)}.", fix="Make the locks anew with `make lock`.")
    return found


def _write(kit: Path, facts: dict[str, Any], wheels: list[Wheel], bill: dict[str, Any]) -> None:
    entries = {wheel.name: (wheel.version, [wheel.sha256]) for wheel in wheels}
    texts = {
        install.FACTS: json.dumps(facts, indent=1) + "\n",
        install.LOCK: lock_text(entries),
        "sbom.json": json.dumps(bill, indent=1, sort_keys=True) + "\n",
        "README.txt": _README.format(**facts),
        "install.py": Path(install.__file__).read_text(encoding="utf-8"),
    }
    for name, text in texts.items():
        (kit / name).write_text(text, encoding="utf-8")


def _lock(path: Path) -> Locked:
    try:
        return read_lock(path.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "Kits are built in a checkout of fedgraft: go there, or name it with --source."
        raise InputError(f"{path}: cannot be read: {error.strerror}.", fix=fix) from None
    except ValueError as error:
        raise InputError(f"{path}: {error}.", fix="Make it anew with `make lock`.") from None


def _key(path: Path) -> NodeKey:
    try:
        return load_node_key(path.read_bytes(), str(path))
    except OSError as error:
        fix = "Name the authority's key of `fedgraft server provision`, or another P-384 key, with --key."
        raise InputError(f"{path}: cannot be read: {error.strerror}.", fix=fix) from None
