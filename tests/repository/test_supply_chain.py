"""What a hospital installs is what was locked, to the byte: lock file, bill of materials, image."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK, BUILD_LOCK = ROOT / "requirements.lock", ROOT / "deploy" / "build.lock"
SBOM = json.loads((ROOT / "deploy" / "sbom.json").read_text(encoding="utf-8"))
TOOL = run_path(str(ROOT / "deploy" / "sbom.py"))
THERE = {
    "python_version": "3.11",
    "python_full_version": "3.11.9",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "sys_platform": "linux",
    "os_name": "posix",
}
"""Where the lock is for."""


def locked(path: Path) -> dict[str, tuple[str, list[str]]]:
    found: dict[str, tuple[str, list[str]]] = TOOL["read_lock"](path.read_text(encoding="utf-8"))
    return found


def applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate(THERE | {"extra": extra}) for extra in ({""} | extras))


def closure(lines: list[str], entries: dict[str, tuple[str, list[str]]]) -> Iterator[tuple[Requirement, str]]:
    """All that these requirements ask for, directly or not, and for whom; where what is locked is installed here."""
    waiting = [(Requirement(line), "pyproject.toml") for line in lines]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted, by = waiting.pop()
        yield wanted, by
        key = TOOL["normalised"](wanted.name), frozenset(wanted.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            if version(wanted.name) != entries.get(key[0], ("",))[0]:
                continue  # another version may ask for something else
            further = requires(wanted.name) or []
        except PackageNotFoundError:
            continue
        asked = [Requirement(line) for line in further]
        waiting += [(one, wanted.name) for one in asked if applies(one, frozenset(wanted.extras))]


@pytest.mark.parametrize("path", [LOCK, BUILD_LOCK], ids=["what runs", "what builds"])
def test_every_line_of_a_lock_is_a_version_with_hashes_and_nothing_else(path: Path) -> None:
    """No address, no option, no version that floats: pip takes a file of that content, or none."""
    entries = locked(path)
    assert entries
    for name, (pinned, hashes) in entries.items():
        assert re.fullmatch(r"[0-9][0-9A-Za-z.!+-]*", pinned), name
        assert hashes, name
    for line in path.read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line


def test_the_lock_has_all_that_the_project_asks_for_and_all_that_that_asks_for() -> None:
    """With --require-hashes one that is missing ends the install."""
    entries, wanted = locked(LOCK), PROJECT["project"]["dependencies"]
    asked = list(closure(wanted, entries))
    assert len(asked) > len(wanted) > 20
    for requirement, by in asked:
        name = TOOL["normalised"](requirement.name)
        assert name in entries, f"{requirement.name}, for {by}, is not locked: make lock"
        version = entries[name][0]
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement}, for {by}: {version} is locked"
        )


def test_what_builds_the_wheel_is_locked_too() -> None:
    entries = locked(BUILD_LOCK)
    for requirement, by in closure(PROJECT["build-system"]["requires"], entries):
        name = TOOL["normalised"](requirement.name)
        assert name in entries, f"{requirement.name}, for {by}, is not locked: make lock"
        assert requirement.specifier.contains(entries[name][0], prereleases=True)


@pytest.mark.slow
def test_a_package_with_other_content_under_the_same_name_and_version_is_not_installed(tmp_path: Path) -> None:
    """A registry, or a mirror, that serves something else: pip and our lock say no; without the hashes it goes in."""
    pinned = locked(LOCK)["h11"][0]
    false = tmp_path / f"h11-{pinned}-py3-none-any.whl"
    inner = f"h11-{pinned}.dist-info"
    with zipfile.ZipFile(false, "w") as archive:
        archive.writestr("h11/__init__.py", "raise SystemExit('owned')\n")
        archive.writestr(f"{inner}/METADATA", f"Metadata-Version: 2.1\nName: h11\nVersion: {pinned}\n")
        archive.writestr(
            f"{inner}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{inner}/RECORD", "")
    ours = next(part for part in re.split(r"\n(?=\S)", LOCK.read_text(encoding="utf-8")) if part.startswith("h11=="))
    (tmp_path / "ours.lock").write_text(ours)
    (tmp_path / "none.txt").write_text(f"h11=={pinned}\n")
    (tmp_path / "theirs.lock").write_text(
        f"h11=={pinned} --hash=sha256:{hashlib.sha256(false.read_bytes()).hexdigest()}\n"
    )

    def installed(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", "--isolated", "install", "--no-deps", "--no-index", "--no-cache-dir"]
        command += ["--find-links", str(tmp_path), "--target", str(tmp_path / words[-1].replace(".", "-")), *words[:-1]]
        return subprocess.run([*command, "-r", words[-1]], cwd=tmp_path, capture_output=True, text=True, check=False)

    refused = installed("--require-hashes", "ours.lock")
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    for words in (("none.txt",), ("--require-hashes", "theirs.lock")):
        assert installed(*words).returncode == 0, "the wheel as such would do"


def test_the_bill_of_materials_is_of_the_lock() -> None:
    """Every entry with its version and hashes, what each needs, and under what licence it says that it may be used."""
    assert (SBOM["bomFormat"], SBOM["specVersion"]) == ("CycloneDX", "1.6")
    assert SBOM["metadata"]["component"]["name"] == "fedgraft"
    listed = {
        TOOL["normalised"](one["name"]): (one["version"], sorted(entry["content"] for entry in one["hashes"]))
        for one in SBOM["components"]
    }
    assert listed == locked(LOCK), "make sbom"
    refs = {one["bom-ref"] for one in SBOM["components"]} | {SBOM["metadata"]["component"]["bom-ref"]}
    assert {one["ref"] for one in SBOM["dependencies"]} == refs
    assert {ref for one in SBOM["dependencies"] for ref in one["dependsOn"]} <= refs
    silent = {one["name"] for one in SBOM["components"] if "licenses" not in one}
    assert len(silent) < 0.1 * len(listed), silent
    text = json.dumps(SBOM)
    assert set(re.findall(r"https?://[^/\"]+", text)) == {"http://cyclonedx.org"}, "no addresses of others"


def component(name: str, version: str, **more: Any) -> dict[str, Any]:
    return {"bom-ref": f"{name}=={version}", "name": name, "version": version, "type": "library", **more}


def test_a_bill_leaves_out_what_is_not_locked_and_is_not_made_of_other_versions() -> None:
    link = [{"type": "distribution", "url": "https://example.org/a"}]
    environment = {
        "components": [component("A_b", "1.0", externalReferences=link), component("pytest", "9.0")],
        "dependencies": [{"ref": "A_b==1.0", "dependsOn": ["pytest==9.0"]}, {"ref": "pytest==9.0"}, {"ref": "root"}],
        "metadata": {
            "component": {"bom-ref": "root", "name": "x"},
            "tools": {"components": [component("t", "1", externalReferences=link)]},
        },
    }
    lock = f"a-b==1.0 \\\n    --hash=sha256:{'0' * 64}\n"
    made = TOOL["bill"](environment, TOOL["read_lock"](lock))
    assert [one["name"] for one in made["components"]] == ["A_b"]
    assert made["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]
    assert made["dependencies"] == [{"ref": "A_b==1.0", "dependsOn": []}, {"ref": "root", "dependsOn": []}]
    assert "example.org" not in json.dumps(made)
    for wrong in (lock.replace("1.0", "1.1"), lock.replace("a-b", "gone")):
        with pytest.raises(ValueError, match="not installed as they are locked"):
            TOOL["bill"](environment, TOOL["read_lock"](wrong))
    with pytest.raises(ValueError, match="not an entry"):
        TOOL["read_lock"]("a>=1\n")


REFERENCE = re.compile(r"[a-z0-9._/-]+(:[\w.-]+)?@sha256:[0-9a-f]{64}")
"""An image that is named by its content, as container tools read it."""


def test_the_image_is_built_on_a_base_that_is_named_by_its_content_or_not_at_all() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG .*$", text, re.MULTILINE) == ["ARG PYTHON_SHA256"], "no digest is assumed"
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    for base in bases:
        assert REFERENCE.fullmatch(base.replace("${PYTHON_SHA256}", "0" * 64))
        for digest in ("", "latest", "0" * 63):
            assert not REFERENCE.fullmatch(base.replace("${PYTHON_SHA256}", digest)), "no tool takes that for an image"


def test_nothing_gets_into_the_image_that_is_not_locked() -> None:
    text = re.sub(r"\\\n", " ", (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8"))
    runs = [part for line in re.findall(r"^RUN (.*)$", text, re.MULTILINE) for part in line.split("&&")]
    fetching = [part for part in runs if re.search(r"\bpip (install|wheel|download)\b", part)]
    assert len(fetching) == 4
    for part in fetching:
        assert "--require-hashes" in part or "--no-index" in part, part
    assert not re.search(r"\b(apt-get|curl|wget|ADD)\b", text)


def ignored(path: str) -> bool:
    """Whether a file stays out of the image's context; the last pattern that fits it, or a folder above it, decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, keep = line.removeprefix("!"), line.startswith("!")
        below = pattern.removeprefix("**/")
        above = [path, *(str(folder) for folder in Path(path).parents if str(folder) != ".")]
        names = [Path(one).name for one in above] if below != pattern else []
        if any(fnmatch.fnmatch(one, pattern) for one in above) or any(fnmatch.fnmatch(one, below) for one in names):
            out = not keep
    return out


def test_no_kit_run_key_or_history_gets_into_the_image_and_all_that_it_needs_does() -> None:
    for path in (
        *("kits/north.zip", "kits/north.code", "kits/authority/ca.key", "runs/trial/model.safetensors", ".git/config"),
        *(".venv/bin/python", "site.yaml", "state/patients.key", "node.key", "tests/conftest.py", "shared/x"),
        "client/__pycache__/x.pyc",
    ):
        assert ignored(path), path
    folders = ("client", "common", "server", "simulations", "configs", "src")
    tracked = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in (*tracked.split(), "pyproject.toml", "hatch_build.py", "requirements.lock", "deploy/build.lock"):
        assert not ignored(path), path
    for path in ("kits/north.zip", "runs/trial/result.json"):
        kept_out = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode
        assert kept_out == 0, f"{path} could be committed"


def test_the_lock_and_the_bill_are_made_by_make() -> None:
    done = subprocess.run(["make", "-n", "lock", "sbom"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--generate-hashes" in done.stdout
    assert "deploy/sbom.py" in done.stdout
