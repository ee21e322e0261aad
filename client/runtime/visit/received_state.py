"""What a site has received: the coordinator's entries, and what travels beside them."""

from __future__ import annotations

import numpy as np

from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.methods.memory.carried import down_shapes
from fedgraft.common.protocol.instructions import (
    Arrays,
    Code,
    Instruction,
    type_name,
)
from fedgraft.common.study.plan import Stage


class ReceivedState:
    """The arrays that instructions brought, each kept until another comes in its place."""

    def __init__(self, local_model: LocalModel) -> None:
        self._local_model = local_model
        self.entries: dict[str, np.ndarray] = {}
        """The model's entries as the coordinator has them."""
        self.came: dict[str, np.ndarray] = {}
        """What the stage needs beside the model, by address."""

    @property
    def everything(self) -> dict[str, np.ndarray]:
        """All that came: the model, and what is beside it."""
        return self.entries | self.came

    def take(self, instruction: Instruction, stage: Stage) -> None:
        """Take in an instruction's arrays. Raises Refused if they do not fit, or anything is missing or not as said.

        An instruction without work needs nothing beside the model.
        """
        tags, forms = self._local_model.tags, self._local_model.forms
        came_forms = down_shapes(self._local_model.ground(stage))
        for key, array in instruction.tensors.items():
            if (forms.get(key) or came_forms.get(key)) != (array.shape, type_name(array)):
                raise Refused(Code.BAD_TENSORS)
        needed = set(tags) | (set(came_forms) if instruction.work else set())
        known: Arrays = self.entries | self.came
        held = {key: array for key, array in known.items() if key in needed and key not in instruction.tensors}
        if (
            set(held) | (set(instruction.tensors) & needed) != needed
            or self._local_model.digests.of(held) != instruction.held
        ):
            raise Refused(Code.MISSING_TENSORS)
        now = held | dict(instruction.tensors)
        self.entries = {key: now[key] for key in tags}
        self.came = {key: now[key] for key in came_forms if key in now}
