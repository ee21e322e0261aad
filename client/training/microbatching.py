"""What to do when the GPU is too small for a batch: the same batch in parts, whose gradients add up to the whole one's.

Only norm layers that learn their statistics tie the cases of a batch together: they then see parts. All else is as with
whole batches, up to the last digits of floating-point sums.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from fedgraft.client.training.gradient import train, trains_norm_statistics
from fedgraft.client.training.losses.base import Moment
from fedgraft.client.training.model.loader import Feed
from fedgraft.client.training.model.local_model import Workbench
from fedgraft.client.training.recalibrate import recalibrate
from fedgraft.common.study.losses import Coupling, Supervised, Term
from fedgraft.common.study.plan import Gradient, Recalibrate

PARTS = "parts"
"""In the figures of a visit: in how many parts its batches were worked on, if not whole."""

_TIED = "; norm layers see parts, so that this is not quite the same training"


class Room:
    """Work on one bench that goes on with less memory. What it did about it is in `log`, if there is one."""

    def __init__(self, bench: Workbench, log: logging.Logger | None = None) -> None:
        self._bench = bench
        self._log = log

    def train(
        self, feed: Feed, spec: Gradient, changes: Sequence[str], moment: Moment, begin: Callable[[], None]
    ) -> dict[str, float]:
        """As `train`; when memory runs out, once more from `begin`, with batches in twice as many parts.

        A visit that began again ends as one that had so many parts from the start, and later visits have as many.
        Raises what `train` raises; torch.OutOfMemoryError if there is no room for the smallest parts either, or if a
        term looks at whole batches, or at a source beside them.
        """
        tied = trains_norm_statistics(self._bench, changes)
        whole = any(term.coupling is not Coupling.NONE and not _of_cases(term) for term in spec.terms)
        while True:
            begin()
            try:
                figures = train(self._bench, feed, spec, changes, moment)
            except torch.OutOfMemoryError:
                if whole or 2 * self._bench.parts * (2 if tied else 1) > spec.batch_size:
                    raise
            else:
                return figures if self._bench.parts == 1 else figures | {PARTS: float(self._bench.parts)}
            self._bench.parts *= 2
            self._tell(f"batches are worked on in {self._bench.parts} parts{_TIED if tied else ''}")

    def recalibrate(self, feed: Feed, spec: Recalibrate) -> dict[str, float]:
        """As `recalibrate`, with batches of half the size when memory runs out."""
        while True:
            try:
                return recalibrate(self._bench, feed, spec)
            except torch.OutOfMemoryError:
                if spec.batch_size < 4:
                    raise
            spec = spec.model_copy(update={"batch_size": spec.batch_size // 2})
            self._tell(f"statistics are taken over batches of {spec.batch_size}")

    def _tell(self, what: str) -> None:
        # Only here, where the error has let go of what it held, does this free anything.
        if self._bench.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._log is not None:
            self._log.warning("out of memory: %s", what)


def _of_cases(term: Term) -> bool:
    """Whether a term is a mean over the site's own cases, so that parts of a batch make up the whole."""
    return isinstance(term, Supervised) and term.of == "target"
