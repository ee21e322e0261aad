"""A copy of the project without links says in one line what to do, and is mended by one command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKS = ("common", "client", "server", "simulations", "configs")


def python(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", *words]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)


def taken_in(copy: Path) -> subprocess.CompletedProcess[str]:
    return python(
        copy, "-c", f"import sys; sys.path.insert(0, {str(copy / 'src')!r}); import fedgraft.common.base.errors"
    )


@pytest.fixture(params=["text", "absent", "empty"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The project as git writes it without symbolic links, or as a zip leaves it."""
    package = tmp_path / "src" / "fedgraft"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "hatch_build.py", tmp_path)
    for name in ("__init__.py", "__main__.py", "cli.py", "py.typed"):
        shutil.copy(ROOT / "src" / "fedgraft" / name, package)
    for name in LINKS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        if request.param == "text":
            (package / name).write_text(f"../../{name}", encoding="utf-8")
        elif request.param == "empty":
            (package / name).mkdir()
    return tmp_path


def test_the_links_that_a_copy_lacks_are_asked_for_and_made(copy: Path):
    refused = taken_in(copy)
    assert refused.returncode != 0
    *_, told = refused.stderr.splitlines()
    assert "Run `python hatch_build.py`" in told
    made = python(copy, "hatch_build.py")
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert taken_in(copy).returncode == 0, taken_in(copy).stderr
    assert [str((copy / "src" / "fedgraft" / name).readlink()) for name in LINKS] == [f"../../{name}" for name in LINKS]


def test_links_that_are_there_stay(copy: Path):
    python(copy, "hatch_build.py")
    package = copy / "src" / "fedgraft"
    (package / "common").unlink()
    shutil.copytree(copy / "common", package / "common")  # as an sdist has it
    assert python(copy, "hatch_build.py").returncode == 0
    assert not (package / "common").is_symlink()
    assert (package / "common" / "__init__.py").is_file()
