"""The suite's own order: a test's folder says its tier and its room, so that one room's tests can be run alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
PACKAGES = ("common", "client", "server", "simulations")
IN_ROOMS = "unit"  # all that lie here are in a room
ACROSS_ROOMS = ("security", "simulation", "deployment", "gpu", "repository")  # here also what concerns several rooms

ELSEWHERE = (
    "test_x.py",
    "wire/test_x.py",
    "unit/test_x.py",
    "unit/client/test_x.py",
    "unit/client/cellar/test_x.py",
    "unit/privacy/test_x.py",
    "security/server/privacy/test_x.py",
    "unit/client/privacy/dp/test_x.py",
)


def rooms() -> list[str]:
    """All rooms of the packages, as client/privacy; the contracts in pyproject.toml name the same."""
    return sorted(
        f"{package}/{room.parent.name}" for package in PACKAGES for room in (ROOT / package).glob("*/__init__.py")
    )


def misplaced(files: list[Path]) -> dict[str, str]:
    """Which of the files, relative to tests/, lie where nobody looks for them, and what to do."""
    known = set(rooms())
    wrong = {}
    for file in files:
        tier, *room = file.parent.parts or ("",)
        if tier not in (IN_ROOMS, *ACROSS_ROOMS):
            wrong[str(file)] = f"{tier or 'tests/'} is no tier: move it to one of {IN_ROOMS}, {', '.join(ACROSS_ROOMS)}"
        elif room and "/".join(room) not in known:
            wrong[str(file)] = f"{'/'.join(room)} is no room of {', '.join(PACKAGES)}"
        elif not room and tier == IN_ROOMS:
            wrong[str(file)] = f"move it to tests/{IN_ROOMS}/<package>/<room>/ of what it tests"
    return wrong


def test_every_test_lies_in_a_tier_and_in_a_room():
    assert misplaced([file.relative_to(TESTS) for file in TESTS.rglob("test_*.py")]) == {}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_file_in_another_place_is_named(name):
    assert list(misplaced([Path(name), Path("unit/client/privacy/test_y.py"), Path("simulation/test_z.py")])) == [name]


def test_every_room_has_tests():
    empty = [room for room in rooms() if not list(TESTS.glob(f"*/{room}/test_*.py"))]
    assert empty == []


def test_a_tests_file_is_found_by_its_name_alone():
    """The documents name tests so."""
    names = Counter(file.name for file in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """`make` without carrying anything out: it prints the commands, as if all were installed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    words = ("make", "--dry-run", f"VENV={Path(sys.prefix)}", *words)
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_quick_tests_of_one_room_are_those_of_all_tiers_in_its_folder():
    done = make("fast", "ROOM=client/privacy")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[-1].split()
    assert {"tests/unit/client/privacy", "tests/security/client/privacy"} <= set(words)
    assert not [word for word in words if word.startswith("tests/") and not word.endswith("/client/privacy")]


def test_a_room_that_is_not_there_is_no_run_of_all_tests():
    done = make("fast", "ROOM=client/cellar")
    assert done.returncode != 0
    assert "client/cellar" in done.stderr


SKIPPING = """
import pytest
def test_passes(): pass
@pytest.mark.skipif(True, reason="there is no {what}")
def test_skips(): pass
def test_skips_later(): pytest.{how}("there is no {what}")
"""


def strict(folder: Path, name: str, how: str, what: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest that fails for what it skips, over one file `name`."""
    file = folder / name
    file.parent.mkdir(parents=True)
    file.write_text(SKIPPING.format(how=how, what=what))
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    words = (sys.executable, "-m", "pytest", "-p", "helpers.no_skips", "-p", "no:cacheprovider", f"--rootdir={folder}")
    return subprocess.run((*words, name), cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_what_is_skipped_without_leave_fails_the_run(tmp_path):
    done = strict(tmp_path, "tests/deployment/test_x.py", "skip", "nginx")
    assert done.returncode == 1
    assert "SKIPPED WITHOUT LEAVE tests/deployment/test_x.py::test_skips: Skipped: there is no nginx" in done.stdout
    assert "test_x.py::test_skips_later: Skipped: there is no nginx" in done.stdout


@pytest.mark.slow
def test_a_skip_has_leave_for_one_reason_alone(tmp_path):
    assert strict(tmp_path / "a", "tests/gpu/test_gpu.py", "skip", "CUDA device").returncode == 0
    assert strict(tmp_path / "b", "tests/gpu/test_gpu.py", "skip", "time").returncode == 1


def test_an_expected_failure_is_no_skip(tmp_path):
    done = strict(tmp_path, "tests/gpu/test_gpu.py", "xfail", "CUDA device")
    assert (done.returncode, "1 xfailed" in done.stdout) == (0, True)
