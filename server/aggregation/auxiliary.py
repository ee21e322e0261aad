"""What the coordinator sends beside the model: the start of the run, control variates, and a teacher."""

from __future__ import annotations

from collections.abc import MutableMapping

import numpy as np

from fedgraft.common.models.initialise import teach
from fedgraft.common.protocol.auxiliary import (
    CONTROL_VARIATE,
    PRETRAINED,
    TEACHER,
    auxiliary_shapes,
    forms_of,
    requirements_of,
    with_control_variates,
)
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.rates import stepped
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.model_spec import Teacher
from fedgraft.common.study.plan import Gradient, Stage
from fedgraft.common.study.stages.losses import Requirement
from fedgraft.common.study.study import Study

Memory = MutableMapping[str, np.ndarray]
"""What a stage keeps from round to round, in the checkpoint with all else."""


class Auxiliary:
    """Arrays beside the model for the stages that need them; `start` is the state before the first exchange."""

    def __init__(self, study: Study, tags: Tags, start: Arrays) -> None:
        self._study = study
        self._tags = tags
        self._start = dict(start)
        self._taught: tuple[Teacher, dict[str, np.ndarray]] | None = None
        self.kept: dict[str, np.ndarray] = {}
        """What was sent last."""

    def for_stage(self, stage: Stage, memory: Memory) -> dict[str, np.ndarray]:
        """What goes out with the instructions of this round."""
        teacher = self._teacher(stage)
        shapes = auxiliary_shapes(stage, self._tags, forms_of(self._start), forms_of(teacher))
        self.kept = {name: self._one(name, shape, memory) for name, (shape, _) in shapes.items()}
        return self.kept

    def learn(self, stage: Stage, number: int, memory: Memory, change: tuple[Arrays, Arrays], share: float) -> None:
        """Take from a round's aggregation what the next one sends; `change` is the state before, and what came instead.

        With x the entries before, y their mean over the sites and `share` the part of the sites that answered, SCAFFOLD
        has c = c + share ((x - y) / (K eta) - c): the mean of the sites' own changes, without any of them sent.
        """
        if Requirement.CONTROL_VARIATE not in requirements_of(stage):
            return
        assert isinstance(stage.local, Gradient)
        before, aggregated = change
        for key in with_control_variates(stage, self._tags):
            if key in aggregated:
                old = self._one(CONTROL_VARIATE + key, before[key].shape, memory).astype(np.float64)
                way = stepped(stage.local, self._tags[key], number, stage.rounds)
                drift = (before[key].astype(np.float64) - aggregated[key]) / way
                memory[CONTROL_VARIATE + key] = (old + share * (drift - old)).astype(before[key].dtype)

    def _teacher(self, stage: Stage) -> dict[str, np.ndarray]:
        """The entries of the model that teaches in this stage, read once for as long as it is the same one."""
        teacher = self._study.teacher_of(stage)
        if teacher is None:
            return {}
        if self._taught is None or self._taught[0] != teacher:
            self._taught = teacher, teach(self._study, stage)
        return self._taught[1]

    def _one(self, name: str, shape: tuple[int, ...], memory: Memory) -> np.ndarray:
        if name.startswith(TEACHER):
            assert self._taught is not None
            return self._taught[1][name.removeprefix(TEACHER)]
        if name.startswith(PRETRAINED):
            return self._start[name.removeprefix(PRETRAINED)]
        if name not in memory:  # never moments: a study that would send them before they are known is refused
            memory[name] = np.zeros(shape, self._start[name.removeprefix(CONTROL_VARIATE)].dtype)
        return memory[name]
