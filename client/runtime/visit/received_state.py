"""What a site has received: the coordinator's entries, and what travels beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.methods.memory.carried import down_shapes
from fedgraft.common.protocol.choosing import chosen, side_by_side
from fedgraft.common.protocol.instructions import (
    Code,
    Instruction,
    LastDigest,
    type_name,
)
from fedgraft.common.protocol.routing import Shapes
from fedgraft.common.study.plan import Stage


class ReceivedState:
    """The arrays that instructions brought, each kept until another comes in its place."""

    def __init__(self, local_model: LocalModel) -> None:
        self._local_model = local_model
        self._held_digest = LastDigest(local_model.digests)
        self.entries: dict[str, np.ndarray] = {}
        """The model's entries as the coordinator has them."""
        self.came: dict[str, np.ndarray] = {}
        """What the stage needs beside the model, by address."""
        self._beside: dict[str, Shapes] = {}
        """By stage, shapes and types of what comes beside the model."""
        self._models: dict[str, np.ndarray] = {}
        """All that came of the model, or of several to choose from."""

    @property
    def everything(self) -> dict[str, np.ndarray]:
        """All that came: the model, and what is beside it."""
        return self.entries | self.came

    def take(
        self, instruction: Instruction, stage: Stage, choice: Sequence[str] = (), own: Collection[str] = ()
    ) -> None:
        """Take in an instruction's arrays. Raises Refused if they do not fit, or anything is missing or not as said.

        An instruction without work needs nothing beside the model. Where there is a `choice` of models, which have the
        entries `own` each for itself, one has to be chosen (`choose`) before there is one.
        """
        forms = self._local_model.forms
        forms = side_by_side(dict.fromkeys(choice, forms), own) if choice else forms
        came_forms = self._beside.get(stage.name)
        if came_forms is None:
            came_forms = self._beside[stage.name] = down_shapes(self._local_model.ground(stage))
        for key, array in instruction.tensors.items():
            if (forms.get(key) or came_forms.get(key)) != (array.shape, type_name(array)):
                raise Refused(Code.BAD_TENSORS)
        needed = forms.keys() | (came_forms.keys() if instruction.work else set())
        held = self._models | self.came
        for key in instruction.tensors.keys() | (held.keys() - needed):
            held.pop(key, None)
        if held.keys() | (instruction.tensors.keys() & needed) != needed:
            raise Refused(Code.MISSING_TENSORS)
        if self._held_digest.of(held) != instruction.held:
            raise Refused(Code.MISSING_TENSORS)
        now = held | self._local_model.interned.of(instruction.tensors)
        self._models = {key: now[key] for key in forms}
        self.came = {key: now[key] for key in came_forms if key in now}
        if not choice:
            self.entries = {key: now[key] for key in self._local_model.tags}
        # What private and masked work has a digest of would else stay in memory, every round's model of it.
        self._local_model.digests.keep_only((self._models | self.came).values())

    def choose(self, name: str, own: Collection[str]) -> None:
        """Take the model of this name, of those that came."""
        self.entries = chosen(self._models, name, self._local_model.tags, own)
