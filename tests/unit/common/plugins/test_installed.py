"""The digest of an installed distribution is that of what would run, whatever RECORD says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.common.base.errors import InputError
from fedgraft.common.plugins.installed import digest_of, version_of
from helpers.plugins import install, make_wheel

POINTS = {"fedgraft.backbones": {"own": "own_nets.nets:Net"}}
FILES = {
    "own_nets/__init__.py": b"",
    "own_nets/nets.py": b"from own_nets import layers\nclass Net: ...\n",
    "own_nets/layers.py": b"",
    "own_helper.py": b"",
}
Set = Callable[..., Path]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Set:
    """Installs a distribution into a folder of its own, which Python looks into first."""

    def make(name: str = "one", files: dict[str, bytes] = FILES, version: str = "1.0") -> Path:
        folder = install(make_wheel(tmp_path / "wheels" / name, "own-nets", version, POINTS, files), tmp_path / name)
        monkeypatch.syspath_prepend(folder)
        return folder

    return make


def test_the_same_wheel_has_one_digest_wherever_it_lies_and_whoever_installed_it(installed: Set) -> None:
    installed("one")
    first = digest_of("own-nets")
    folder = installed("two")
    facts = folder / "own_nets-1.0.dist-info"
    (facts / "INSTALLER").write_text("other")
    (folder / "own_nets" / "__pycache__").mkdir()
    (folder / "own_nets" / "__pycache__" / "nets.cpython-311.pyc").write_bytes(b"what is compiled depends on Python")
    with (facts / "RECORD").open("a") as record:
        record.write("\n../../bin/own,sha256=AAAA,3\nown_nets/__pycache__/nets.cpython-311.pyc,,\n")
    assert (digest_of("own-nets"), version_of("own_nets")) == (first, "1.0")


@pytest.mark.parametrize(
    "change",
    [
        {"own_nets/layers.py": b"changed = True\n"},
        {"own_helper.py": b"changed = True\n"},
        {"own_nets/more.py": b""},
    ],
)
def test_other_content_has_another_digest(installed: Set, change: dict[str, bytes]) -> None:
    installed("one")
    first = digest_of("own-nets")
    installed("two", FILES | change)
    assert digest_of("own-nets") != first


def test_a_file_that_was_changed_after_the_installation_is_named_though_record_is_as_it_was(installed: Set) -> None:
    folder = installed()
    (folder / "own_nets" / "layers.py").write_text("evil = True\n")
    with pytest.raises(InputError, match=r"own_nets/layers\.py is not what was installed\. Install it again"):
        digest_of("own-nets")


def test_record_cannot_hide_what_python_would_import(installed: Set) -> None:
    """A package beside a module of the same name is imported in its place; RECORD does not list it."""
    folder = installed()
    first = digest_of("own-nets")
    (folder / "own_nets" / "layers").mkdir()
    (folder / "own_nets" / "layers" / "__init__.py").write_text("evil = True\n")
    assert digest_of("own-nets") != first


def test_a_record_that_was_written_anew_has_another_digest(installed: Set) -> None:
    folder = installed()
    first = digest_of("own-nets")
    (folder / "own_nets" / "layers.py").write_text("evil = True\n")
    record = folder / "own_nets-1.0.dist-info" / "RECORD"
    lines = [line.partition(",")[0] + ",," for line in record.read_text().splitlines()]
    record.write_text("\n".join(lines))
    assert digest_of("own-nets") != first


def test_a_module_in_the_way_is_named(installed: Set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed()
    (tmp_path / "first" / "own_nets").mkdir(parents=True)
    (tmp_path / "first" / "own_nets" / "__init__.py").write_text("evil = True\n")
    monkeypatch.syspath_prepend(tmp_path / "first")
    with pytest.raises(InputError, match=r"`import own_nets` would run .*first/own_nets/__init__\.py, which is none"):
        digest_of("own-nets")


def test_of_what_is_installed_in_place_the_projects_code_counts(installed: Set, tmp_path: Path) -> None:
    folder, project = installed(), tmp_path / "project"
    facts = folder / "own_nets-1.0.dist-info"
    for name in ("own_nets", "own_helper.py"):
        (project / name).parent.mkdir(exist_ok=True)
        (folder / name).rename(project / name)
    (facts / "direct_url.json").write_text(json.dumps({"url": project.as_uri(), "dir_info": {"editable": True}}))
    sys.path.insert(0, str(project))
    try:
        first = digest_of("own-nets")
        (project / "venv").mkdir()
        (project / "venv" / "pyvenv.cfg").write_text("")
        (project / "venv" / "other.py").write_text("")
        assert digest_of("own-nets") == first
        (project / "own_nets" / "layers.py").write_text("changed = True\n")
        assert digest_of("own-nets") != first
    finally:
        sys.path.remove(str(project))


def test_what_is_not_installed_has_neither_version_nor_digest() -> None:
    assert version_of("own-nets") is None
    with pytest.raises(InputError, match="own-nets is not installed"):
        digest_of("own-nets")
