"""How torch uses a process: its threads, and what the C library does with memory that torch frees.

A step of training asks for the same large blocks as the one before. glibc gives each back to the system as it is freed,
and the system clears its pages before it gives it out again: resnet50 at 224 pixels spent a seventh of its time so.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedgraft.common.base.environment import give_back

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of `mallopt`'s parameters, from glibc's malloc.h."""
_ONE_BLOCK = 1 << 25
"""As large as glibc itself comes to at most. Larger ones are of many sizes, and leave holes that no other fills: with
all up to 1 GB a study at 224 pixels held twice the memory."""
_ALL = (1 << 31) - 1
_TOLD = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> None:
    """From now on this process keeps what it frees, up to its peak; `give_back` gives back what is free at that moment.

    Nothing changes where the environment says how (`MALLOC_TRIM_THRESHOLD_`, ...), or with another libc than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in _TOLD):
        return
    mallopt(_MMAP_THRESHOLD, _ONE_BLOCK)
    mallopt(_TRIM_THRESHOLD, _ALL)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads within; many small steps are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    keep_freed()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        give_back()
