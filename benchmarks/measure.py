"""Whole processes measured from outside: wall time, CPU of all descendants, peak memory of the process tree."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_S = 0.25


@dataclass(frozen=True)
class Measured:
    """Seconds of wall and CPU time, and peak proportional memory of the tree in MB."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def measure(command: list[str], environment: dict[str, str]) -> Measured:
    """Run a command to the end of its last descendant. RuntimeError if it fails."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = _children_cpu()
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    peak = _Peak(process.pid)
    peak.start()
    code = process.wait()
    _reap()
    wall = time.monotonic() - started
    peak.stop.set()
    peak.join()
    if code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {code}")
    return Measured(wall, _children_cpu() - before, peak.most / 1024)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _reap() -> None:
    """Wait for what the command left behind and this process inherited."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


class _Peak(threading.Thread):
    """Samples the proportional set size of a process and its descendants, in kB."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root = root
        self.stop = threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self.stop.wait(_SAMPLE_S):
            self.most = max(self.most, sum(pss(pid) for pid in _tree(self._root)))


def _tree(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    me, found = os.getpid(), []
    for pid in parents:
        at: int | None = pid
        while at is not None and at not in (root, me):
            at = parents.get(at)
        if at is not None and pid != me:
            found.append(pid)
    return found


def pss(pid: int) -> int:
    """The proportional set size of a process in kB, 0 if it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0
