"""What a site has received: the coordinator's entries, and what travels beside them."""

from __future__ import annotations

import numpy as np

from fedgraft.client.privacy.guard.privacy_guard import Refused
from fedgraft.client.training.model.local_model import Workbench
from fedgraft.common.protocol.auxiliary import aside_shapes
from fedgraft.common.protocol.instructions import (
    Arrays,
    Code,
    Order,
    type_name,
)
from fedgraft.common.study.plan import Stage


class Inbox:
    """The arrays that orders brought, each kept until another comes in its place."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self.entries: dict[str, np.ndarray] = {}
        """The model's entries as the coordinator has them."""
        self.aside: dict[str, np.ndarray] = {}
        """What the stage needs beside the model."""

    def take(self, order: Order, stage: Stage) -> None:
        """Take in an order's arrays. Raises Refused if they do not fit, or if anything is missing or other than said.

        An order without work needs nothing beside the model.
        """
        tags, forms = self._bench.tags, self._bench.forms
        beside = aside_shapes(stage, tags, forms, self._bench.teacher_forms(stage))
        for key, array in order.tensors.items():
            if (forms.get(key) or beside.get(key)) != (array.shape, type_name(array)):
                raise Refused(Code.BAD_TENSORS)
        needed = set(tags) | (set(beside) if order.work else set())
        known: Arrays = self.entries | self.aside
        held = {key: array for key, array in known.items() if key in needed and key not in order.tensors}
        if set(held) | (set(order.tensors) & needed) != needed or self._bench.digests.of(held) != order.held:
            raise Refused(Code.MISSING_TENSORS)
        now = held | dict(order.tensors)
        self.entries = {key: now[key] for key in tags}
        self.aside = {key: now[key] for key in beside if key in now}
