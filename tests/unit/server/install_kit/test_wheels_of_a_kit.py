"""What wheels of a kit say of themselves, and whether they are all that is needed on the machine that it is for."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from fedgraft.common.base.errors import InputError, RunError
from fedgraft.server.install_kit.bill import bill_of_kit
from fedgraft.server.install_kit.lock import lock_text, read_lock
from fedgraft.server.install_kit.wheels import TargetMachine, fetch_torch, goes_with_torch, lacking, look

MACHINE = TargetMachine("3.11", "manylinux_2_31_x86_64")


def wheel(folder: Path, name: str, version: str, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    inner = f"{name}-{version}.dist-info"
    said = "\n".join([f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *lines]) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{inner}/METADATA", said)
        archive.writestr(
            f"{inner}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{inner}/RECORD", "")
    return path


def test_what_is_lacking_is_found_where_the_kit_is_built(tmp_path: Path) -> None:
    needs = ["two>=2", "gone", "win; sys_platform == 'win32'", "more; extra == 'all'", "old; python_version < '3.11'"]
    wheel(tmp_path, "one", "1.0", *(f"Requires-Dist: {need}" for need in needs))
    wheel(tmp_path, "two", "1.5", "Requires-Python: >=3.12")
    assert lacking(look(tmp_path), MACHINE) == [
        "two 1.5 does not run on Python 3.11 (>=3.12)",
        "one needs two >=2, and the kit has 1.5",
        "one needs gone, which is not in the kit",
    ]
    assert lacking(look(tmp_path), TargetMachine("3.12", MACHINE.platform), ["gone"]) == [
        "one needs two >=2, and the kit has 1.5"
    ]


def test_two_wheels_of_one_package_are_no_kit(tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        wheel(tmp_path, "one", version)
    with pytest.raises(RunError, match="two wheels of one package"):
        look(tmp_path)


def test_a_platform_takes_older_wheels_and_no_newer_ones() -> None:
    tags = MACHINE.tags()
    assert tags[0] == "manylinux_2_31_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"} < set(tags)
    assert "manylinux_2_32_x86_64" not in tags
    with pytest.raises(InputError, match="Kits are for Linux"):
        TargetMachine("3.11", "win_amd64").tags()


def test_a_lock_is_read_as_it_was_written() -> None:
    entries = {"one": ("1.0", ["0" * 64, "f" * 64]), "two": ("2.0+cpu", ["a" * 64])}
    assert read_lock(lock_text(entries)) == entries


def test_the_bill_is_of_the_files_that_are_there(tmp_path: Path) -> None:
    for name, version in (("fedgraft", "0.2.0"), ("torch", "2.9+cpu"), ("new", "1.0")):
        wheel(tmp_path, name, version)
    licence = [{"license": {"id": "MIT"}}]
    whole = {
        "components": [
            {"bom-ref": "torch==2.9", "name": "torch", "version": "2.9", "licenses": licence},
            {"bom-ref": "gone==1.0", "name": "gone", "version": "1.0"},
        ],
        "dependencies": [{"ref": "root", "dependsOn": ["torch==2.9", "gone==1.0"]}, {"ref": "torch==2.9"}],
        "metadata": {"component": {"bom-ref": "root", "name": "fedgraft", "version": "0"}},
    }
    found = look(tmp_path)
    bill = bill_of_kit(whole, found)
    assert [(one["name"], one["version"]) for one in bill["components"]] == [("new", "1.0"), ("torch", "2.9+cpu")]
    assert bill["components"][1]["licenses"] == licence
    digests = {wheel.name: wheel.sha256 for wheel in found}
    assert bill["components"][1]["hashes"] == [{"alg": "SHA-256", "content": digests["torch"]}]
    assert bill["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": digests["fedgraft"]}]
    assert bill["dependencies"] == [
        {"ref": "root", "dependsOn": ["torch==2.9+cpu"]},
        {"ref": "torch==2.9+cpu", "dependsOn": []},
    ]


@pytest.mark.slow
def test_another_build_of_torch_brings_what_it_alone_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself chooses, from a folder in place of an index: all else keeps its version of the lock."""
    index, kit = tmp_path / "index", tmp_path / "kit"
    kit.mkdir()
    for version in ("1.0", "2.0"):
        wheel(index, "numpy", version)
        wheel(index, "nvidia_thing_cu12", version)
    for build in ("", "+cpu", "+cu128"):
        more = ["Requires-Dist: nvidia-thing-cu12"] if build == "+cu128" else []
        wheel(index, "torch", f"1.9{build}", "Requires-Dist: numpy", *more)
        wheel(index, "torchvision", f"0.9{build}", f"Requires-Dist: torch==1.9{build}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    locked = {"numpy": ("1.0", ["0" * 64]), "torch": ("1.9", ["0" * 64]), "torchvision": ("0.9", ["0" * 64])}
    locked |= {"nvidia-thing-cu13": ("1.0", ["0" * 64])}
    fetch_torch(locked, "cu128", None, MACHINE, kit)
    assert {(one.name, one.version) for one in look(kit)} == {
        ("numpy", "1.0"),
        ("nvidia-thing-cu12", "2.0"),
        ("torch", "1.9+cu128"),
        ("torchvision", "0.9+cu128"),
    }
    assert [name for name in locked if goes_with_torch(name)] == ["torch", "torchvision", "nvidia-thing-cu13"]
    with pytest.raises(RunError, match=r"torch==1.9\+cu999"):
        fetch_torch(locked, "cu999", None, MACHINE, kit)
