"""The most memory that a piece of work needed."""

from __future__ import annotations

import contextlib
import mmap
import resource
import sys
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PROBE = 64 * 2**20
"""Bytes of a peak that cannot be overlooked."""


class PeakMemory:
    """Counts from its construction on: memory of the GPU, or that of this whole process on the CPU.

    Where the system cannot start such a count anew (other systems than Linux, some sandboxes), it is that since the
    process began, and `whole_life` says so.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.whole_life = False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self.whole_life = not _counted_anew()

    def peak(self) -> int:
        """The most bytes in use: of the GPU since this was made, of the process as `whole_life` says."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = _status("VmHWM")
        if peak is None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return peak


def _counted_anew() -> bool:
    """Whether the peak could be set back to what is used now, which some sandboxes take without doing it.

    So a peak is made first, and looked for afterwards.
    """
    with mmap.mmap(-1, _PROBE) as pages:  # which surely go back to the system, as the heap's need not
        for start in range(0, _PROBE, mmap.PAGESIZE):
            pages[start] = 1
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")  # proc(5)
    peak, used = _status("VmHWM"), _status("VmRSS")
    return peak is not None and used is not None and peak < used + _PROBE // 2


def _status(key: str) -> int | None:
    """Bytes that Linux tells under this key."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
    except (OSError, StopIteration, ValueError):
        return None
