"""Whether a process that trains asks the system for the same memory at every step, as the system counts it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STEPS = """
import resource
import torch
from torch import nn
from fedgraft.client.training.device.process import torch_threads
from fedgraft.common.base.environment import give_back

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6

layers = [layer for _ in range(4) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
model, images = nn.Sequential(*layers), torch.ones(32, 16, 64, 64)

def step():
    model(images).sum().backward()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5

step()
give_back()
before = held()
with torch_threads(1):
    faults()  # until the heap has room for all blocks of a step
    print(faults())
    kept = held() - before
    give_back()
print(kept, held() - before)
"""


def measured(**environment: str) -> tuple[float, float, float]:
    """Page faults of a step, and MB more than before: while steps are taken, and once they are given back."""
    known = os.environ | {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, "-c", STEPS], env=known, capture_output=True, text=True, check=True)
    faults, kept, left = map(float, done.stdout.split())
    return faults, kept, left


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_steps_of_a_run_work_in_memory_that_is_kept_and_then_given_back() -> None:
    faults, kept, left = measured()
    assert kept > 50
    assert left < 20
    otherwise, _, _ = measured(GLIBC_TUNABLES="glibc.malloc.arena_test=8")
    assert faults < otherwise / 4, "whoever says in the environment how malloc works has it so"
