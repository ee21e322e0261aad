"""Whether a process that trains asks the system for the same memory at every step, as the system counts it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from fedgraft.client.training.model.process import give_back, torch_threads

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6

def step():  # 160 MB in two blocks, of which each page is touched
    return float((torch.ones(20_000_000) + 1).sum())

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5

step()
before = held()
with torch_threads(1):
    faults()  # until the heap has room for both blocks side by side
    print(faults())
    kept = held() - before
    give_back()
print(kept, held() - before)
"""


def measured(**environment: str) -> tuple[float, float, float]:
    """Page faults of a step, and MB more than before: while steps are taken, and once they are given back."""
    known = os.environ | {"MALLOC_ARENA_MAX": "1"} | environment
    done = subprocess.run([sys.executable, "-c", STEPS], env=known, capture_output=True, text=True, check=True)
    faults, kept, left = map(float, done.stdout.split())
    return faults, kept, left


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_steps_of_a_run_work_in_memory_that_is_kept_and_then_given_back() -> None:
    faults, kept, left = measured()
    assert kept > 70
    assert left < 20
    otherwise, kept, _ = measured(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="33554432")
    assert kept < 20, "whoever says in the environment how malloc works has it so"
    assert faults < otherwise / 4
