"""What to do when the GPU is too small for a batch: the same batch in parts, whose gradients add up to the whole one's.

Only norm layers that learn their statistics tie the cases of a batch together: they then see parts. All else is as with
whole batches, up to the last digits of floating-point sums.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from fedgraft.client.training.gradient import train, trains_norm_statistics
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.recalibrate import recalibrate
from fedgraft.common.study.plan import Gradient, Recalibrate
from fedgraft.common.study.stages.losses import Loss, LossScope, Supervised

PARTS = "parts"
"""In the figures of a visit: in how many parts its batches were worked on, if not whole."""

_TIED = "; norm layers see parts, so that this is not quite the same training"


class Microbatching:
    """Work on one model that goes on with less memory. What it did about it is in `log`, if there is one."""

    def __init__(self, local_model: LocalModel, log: logging.Logger | None = None) -> None:
        self._local_model = local_model
        self._log = log

    def train(
        self,
        loader: Loader,
        spec: Gradient,
        changes: Sequence[str],
        round_context: RoundContext,
        begin: Callable[[], None],
    ) -> dict[str, float]:
        """As `train`; when memory runs out, once more from `begin`, with batches in twice as many parts.

        A visit that began again ends as one that had so many parts from the start, and later visits have as many.
        Raises what `train` raises; torch.OutOfMemoryError if there is no room for the smallest parts either, or if a
        loss looks at whole batches, or at a source beside them.
        """
        tied = trains_norm_statistics(self._local_model, changes)
        whole = any(loss.scope is not LossScope.REGULARISER and not _of_cases(loss) for loss in spec.losses)
        whole |= any(method.per_batch for method in spec.methods)
        if whole:
            self._local_model.parts = 1  # as it was before a stage whose batches may be parted
        while True:
            begin()
            try:
                figures = train(self._local_model, loader, spec, changes, round_context)
            except torch.OutOfMemoryError:
                if whole or 2 * self._local_model.parts * (2 if tied else 1) > spec.batch_size:
                    raise
            else:
                return figures if self._local_model.parts == 1 else figures | {PARTS: float(self._local_model.parts)}
            self._local_model.parts *= 2
            self._tell(f"batches are worked on in {self._local_model.parts} parts{_TIED if tied else ''}")

    def recalibrate(self, loader: Loader, spec: Recalibrate) -> dict[str, float]:
        """As `recalibrate`, with batches of half the size when memory runs out."""
        while True:
            try:
                return recalibrate(self._local_model, loader, spec)
            except torch.OutOfMemoryError:
                if spec.batch_size < 4:
                    raise
            spec = spec.model_copy(update={"batch_size": spec.batch_size // 2})
            self._tell(f"statistics are taken over batches of {spec.batch_size}")

    def _tell(self, what: str) -> None:
        # Only here, where the error has let go of what it held, does this free anything.
        if self._local_model.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._log is not None:
            self._log.warning("out of memory: %s", what)


def _of_cases(loss: Loss) -> bool:
    """Whether a loss is a mean over the site's own cases, so that parts of a batch make up the whole."""
    return isinstance(loss, Supervised) and loss.of == "target"
