"""What speed is measured against does the same work: other patients or another order, and a ratio says nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_loop_of_the_benchmarks_learns_what_the_engine_learns(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.engine", "payload", "--sites", "2", "--rounds", "1", "--agree"]
    paths = [str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = os.environ | {
        "TMPDIR": str(tmp_path),
        "FEDGRAFT_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    done = subprocess.run(
        [*command, "--only", "loop", "inprocess"], cwd=ROOT, env=own, text=True, capture_output=True, check=False
    )
    assert not done.returncode, done.stderr[-2000:]
    curves = [line.split()[2:] for line in done.stdout.splitlines() if " loss " in line]
    assert len(curves) == 2
    assert len(set(curves[0])) > 1  # and something is learnt
