"""Workers do not outlive who started them: they would work on in folders that whoever goes on writes as well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

WORDS = {
    "simulate": ("--engine", "pool", "--workers", "1"),
    "compare": ("--arm", "study", "--arm", "fedprox", "--seeds", "1", "--workers", "1"),
}


def marked(mark: str, but: int = 0) -> list[int]:
    """Numbers of the processes that have this word in their environment, and read their work from others."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and int(folder.name) != but:
                found.append(int(folder.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def seconds_of(process: int) -> float:
    """Its CPU time."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.parametrize("command", WORDS)
def test_a_worker_in_the_middle_of_a_long_visit_ends_with_who_started_it(command: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    words = [sys.executable, "-m", "fedgraft", command, "quickstart", *WORDS[command], "--out", str(tmp_path / "run")]
    words += ["--set", "method={name: fedavg, rounds: 1, local: {steps: 100000}}"]
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(words, env=os.environ | {"MARK": mark}, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 180
        while not any(seconds_of(one) > 6 for one in marked(mark, process.pid)):
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline, "no worker has begun"
            time.sleep(0.1)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while left := marked(mark):
            assert time.monotonic() < deadline, f"{len(left)} processes work on for nobody"
            time.sleep(0.1)
    finally:
        for one in (process.pid, *marked(mark)):
            if one in marked(mark):
                os.kill(one, signal.SIGKILL)
