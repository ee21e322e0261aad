"""Tests that fail, hang or are killed leave no process behind, and what they share with others as they found it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.federation import ROOT, Started, line_of, until

TESTS = Path(__file__).parents[1]
SLEEP = "import time; time.sleep(600)"
SUITE = f"""
import signal, subprocess, sys, os
import pytest
from helpers.federation import Federation
from deployment_conftest import *

class Bare(Federation):
    def provision(self, sites):
        pass
    def fedgraft(self, *arguments, fails=False):
        (self.root / "asked").write_text(" ".join(map(str, arguments)))
    def start_server(self, *more, within=()):
        self.spawn("server", [sys.executable, "-c", {SLEEP!r}])
    def start_site(self, name, *studies):
        return self.spawn(name, [sys.executable, "-c", {SLEEP!r}])

@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    made = Bare(tmp_path_factory.mktemp("shared"), None, ())
    made.start_server()
    for name in ("east", "north"):
        made.start_site(name)
        made.site(name).mkdir(parents=True)
        (made.site(name) / "site.yaml").touch()
    yield made
    made.end()

def test_fails_with_all_in_pieces(shared):
    shared.spawn("run", [sys.executable, "-c", {SLEEP!r}])
    shared.processes["east"].kill()
    shared.processes["east"].wait()
    shared.processes["north"].send_signal(signal.SIGSTOP)
    shared.processes["server"].kill()
    shared.processes["server"].wait()
    assert False, "on purpose"

def test_has_the_federation_whole_again(shared):
    assert shared.running() == {{"server", "east", "north"}}
    state = open(f"/proc/{{shared.processes['north'].pid}}/stat").read().rpartition(")")[2].split()[0]
    assert state != "T"
    assert (shared.root / "asked").read_text().startswith("server stop")

def test_hangs(shared, tmp_path):
    shared.processes["north"].send_signal(signal.SIGSTOP)
    open(os.environ["NUMBERS"], "w").write("\\n".join(str(process.pid) for process in shared.processes.values()))
    import time; time.sleep(600)
"""


@pytest.fixture
def suite(tmp_path: Path) -> tuple[list[str], dict[str, str], Path]:
    """A suite of its own with this tier's fixtures: how it is started, in what environment, and where it says whom."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    numbers = tmp_path / "numbers"
    paths = [str(TESTS), str(ROOT / "src"), str(tmp_path), os.environ.get("PYTHONPATH", "")]
    (tmp_path / "deployment_conftest.py").write_text((TESTS / "deployment" / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = deployment: real processes\n")
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "deployment_conftest",
        "test_suite.py",
    ]
    return words, os.environ | {"PYTHONPATH": os.pathsep.join(paths), "NUMBERS": str(numbers)}, numbers


def test_a_test_that_fails_leaves_the_federation_that_others_share_whole(suite, tmp_path):
    words, environment, _ = suite
    chosen = [*words, "-k", "not hangs"]
    done = subprocess.run(chosen, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("how", ["killed", "timed out"])
def test_a_suite_that_is_killed_or_runs_out_of_time_leaves_nothing(suite, tmp_path, how):
    words, environment, numbers = suite
    # What comes before the test itself takes as long as it takes.
    limit = ["--timeout", "3", "--timeout-method", "thread", "-o", "timeout_func_only=true"]
    limit = limit if how == "timed out" else []
    with (tmp_path / "out").open("wb") as out:
        process = Started([*words, *limit, "-k", "hangs"], cwd=tmp_path, env=environment, stdout=out, stderr=out)
    until(lambda: numbers.exists() and len(numbers.read_text().split()) == 3, 60, "the suite to hang")
    left = [int(number) for number in numbers.read_text().split()]
    if how == "killed":
        os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    until(lambda: not any(line_of(number) for number in left), 10, f"the end of {[line_of(one) for one in left]}")
