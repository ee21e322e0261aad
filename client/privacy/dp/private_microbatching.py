"""A sum over whole units in groups, which get smaller where memory runs out; what comes out is the same sum."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType

import torch
from torch import Tensor

from fedgraft.client.privacy.dp.gradients.trainer import Trainer
from fedgraft.client.training.device.alike import Sizes, room

_log = logging.getLogger("fedgraft.site")


class PrivateMicrobatches:
    """A trainer, and how many cases it works on at once.

    Every unit is clipped by itself, so that the sum is that of one whole group, whoever ran out of what. A pass that
    failed leaves pieces of cases' gradients behind, which another pass would add up: the hooks are therefore taken off,
    with all that they hold, and new ones put on.
    """

    def __init__(self, attach: Callable[[int | Sizes], AbstractContextManager[Trainer]], size: int) -> None:
        self._attach = attach
        self._stack = ExitStack()
        self._trainer: Trainer | None = None
        self._sizes: Sizes = ()
        self.size = size
        """The most cases in a group, but for a unit that has more."""

    def __enter__(self) -> PrivateMicrobatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def sum_of(self, work: Callable[[Trainer, int], list[Tensor]]) -> list[Tensor]:
        """`work` with the trainer and a size, from its beginning with half the size each time that memory runs out.

        torch.OutOfMemoryError if single cases do not fit either.
        """
        while True:
            try:
                if self._trainer is None:
                    self._trainer = self._stack.enter_context(self._attach(self._sizes or self.size))
                return work(self._trainer, self.size)
            except torch.OutOfMemoryError:
                if self.size < 2:
                    raise
            # Only here, where the error has let go of what it held, does this free anything.
            self._stack.close()
            self.size //= 2
            # Those of before, as far as they are small enough: other ones may come out otherwise, and how many cases
            # there are says how large a pass is.
            sizes = self._trainer.sizes if self._trainer is not None else ()
            self._sizes, self._trainer = tuple(size for size in sizes if room(size) <= self.size), None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning("out of memory: private steps are worked on in groups of %d", self.size)
