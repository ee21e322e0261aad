"""What the coordinator sends beside the model: the start of the run, and control variates."""

from __future__ import annotations

from collections.abc import MutableMapping

import numpy as np

from common.aside import CONTROL, PRETRAINED, aside_shapes, controlled, forms_of, needs_of
from common.orders import Arrays
from common.plan import Gradient, Stage
from common.rates import stepped
from common.study import Study
from common.terms import Need
from common.travel import Tags

Memory = MutableMapping[str, np.ndarray]
"""What a stage keeps from round to round, in the checkpoint with all else."""


class Aside:
    """Arrays beside the model for the stages that need them; `start` is the state before the first exchange."""

    def __init__(self, study: Study, tags: Tags, start: Arrays) -> None:
        self._study = study
        self._tags = tags
        self._start = dict(start)
        self.kept: dict[str, np.ndarray] = {}
        """What was sent last."""

    def beside(self, stage: Stage, memory: Memory) -> dict[str, np.ndarray]:
        """What goes out with the orders of this round."""
        shapes = aside_shapes(stage, self._tags, forms_of(self._start))
        self.kept = {name: self._one(name, shape, memory) for name, (shape, _) in shapes.items()}
        return self.kept

    def learn(self, stage: Stage, number: int, memory: Memory, change: tuple[Arrays, Arrays], share: float) -> None:
        """Take from a round's merge what the next one sends; `change` is the state before, and what came instead.

        With x the entries before, y their mean over the sites and `share` the part of the sites that answered, SCAFFOLD
        has c = c + share ((x - y) / (K eta) - c): the mean of the sites' own changes, without any of them sent.
        """
        if Need.CONTROL not in needs_of(stage):
            return
        assert isinstance(stage.local, Gradient)
        before, merged = change
        for key in controlled(stage, self._tags):
            if key in merged:
                old = self._one(CONTROL + key, before[key].shape, memory).astype(np.float64)
                way = stepped(stage.local, self._tags[key], number, stage.rounds)
                drift = (before[key].astype(np.float64) - merged[key]) / way
                memory[CONTROL + key] = (old + share * (drift - old)).astype(before[key].dtype)

    def _one(self, name: str, shape: tuple[int, ...], memory: Memory) -> np.ndarray:
        if name.startswith(PRETRAINED):
            return self._start[name.removeprefix(PRETRAINED)]
        if name not in memory:  # never moments: a study that would send them before they are known is refused
            memory[name] = np.zeros(shape, self._start[name.removeprefix(CONTROL)].dtype)
        return memory[name]
