"""What a person sees between the ends of two cells: which are at work, how far, and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Protocol

from fedgraft.common.base.disk import listed, oldest_first
from fedgraft.common.study.schedule import schedule
from fedgraft.simulations.compare.running.models import ModelJob


class Running(Protocol):
    """What is asked of a cell: its name in words, its folder's name, and its work."""

    @property
    def digest(self) -> str:
        """Known by it in the folder of cells."""

    @property
    def job(self) -> ModelJob:
        """Its work."""

    def words(self) -> str:
        """Its name for people."""


Tell = Callable[[str], None]
BEAT_S = 20.0
"""Seconds of silence after which it is said what is at work."""


def as_they_end(
    futures: Mapping[Future[None], Running], out: Path, tell: Tell | None, beat_s: float | None = None
) -> Iterator[Future[None]]:
    """The futures as they end; while none does, every so many seconds a line to `tell`."""
    waiting = set(futures)
    while waiting:
        ended, waiting = wait(waiting, BEAT_S if beat_s is None else beat_s, FIRST_COMPLETED)
        if not ended and tell is not None and (line := _at_work([futures[one] for one in waiting], out)):
            tell(line)
        yield from ended


def time_left(done: int, of: int, started: float, already: int, workers: int = 1) -> str:
    """About how long the rest takes, by what this call has run so far; nothing until each worker has, or at the end."""
    run = done - already
    if run < workers or done >= of:
        return ""
    seconds = (time.monotonic() - started) / run * (of - done)
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


def _at_work(cells: Sequence[Running], out: Path) -> str:
    begun = [(cell, out / cell.digest[:16] / "runs") for cell in cells]
    words = [f"{cell.words()}{_how_far(cell, runs)}" for cell, runs in begun if runs.is_dir()]
    return f"at work: {'; '.join(words)}" if words else ""


def _how_far(cell: Running, runs: Path) -> str:
    """Exchanges done of the run that the cell is at; nothing where no run is kept, as for a model of one site alone."""
    histories = oldest_first(listed(runs, "*/history.jsonl"))
    try:
        done = histories[-1].read_bytes().count(b"\n")
    except (IndexError, FileNotFoundError):  # a cell that is done takes its runs away
        return ""
    total = sum(1 for _ in schedule(cell.job.study))
    return f" (exchange {done} of {total})"
