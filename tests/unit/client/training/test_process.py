"""Whether a process that trains asks the system for the same memory at every step, as the system counts it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STEPS = """
import ctypes
import resource
import torch
from torch import nn
from fedgraft.client.training.device.process import torch_threads
from fedgraft.common.base.environment import give_back

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault is of one page on every machine

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

layers = [layer for _ in range(4) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
model, images = nn.Sequential(*layers), torch.ones(32, 16, 64, 64)

def step():
    model(images).sum().backward()

step()
give_back()
before, asked = held(), faults()
with torch_threads(1):
    for _ in range(20):
        step()
    kept = held() - before
    again = faults() - asked - kept
    give_back()
megabytes = resource.getpagesize() / 1e6
print(again / 20, kept * megabytes, (held() - before) * megabytes)
"""


def measured(**environment: str) -> tuple[float, float, float]:
    """Pages that a step asks for once more, and MB more than before: while steps are taken, and once given back.

    Pages that the process holds for the first time are not among: the heap is as large as it will be after few steps
    or many, since that hangs on where blocks of threads and libraries lie. Whoever keeps all asks for no page twice.
    """
    known = os.environ | {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, "-c", STEPS], env=known, capture_output=True, text=True, check=True)
    again, kept, left = map(float, done.stdout.split())
    return again, kept, left


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_steps_of_a_run_work_in_memory_that_is_kept_and_then_given_back() -> None:
    again, kept, left = measured()
    assert kept > 50
    assert left < 20
    otherwise, _, _ = measured(GLIBC_TUNABLES="glibc.malloc.arena_test=8")
    assert again < otherwise / 20, "whoever says in the environment how malloc works has it so"
