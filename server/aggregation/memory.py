"""What the coordinator remembers for a stage: begun, sent, and moved on after each aggregation, by one rule."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedgraft.common.methods.memory.carried import Side, going_down, methods_of, sides_of, sums_of
from fedgraft.common.methods.memory.given import Taught
from fedgraft.common.methods.memory.method import Ground, Round
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import Tags, forms_of
from fedgraft.common.protocol.states import State, States
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.study import Study


class Memory:
    """The states of a run's coordinator; `start` are the entries before the first exchange."""

    def __init__(self, study: Study, tags: Tags, start: Arrays) -> None:
        self._study = study
        self._tags = tags
        self._start = dict(start)
        self._forms = forms_of(start)
        self._made: dict[Any, State] = {}
        """Of sides whose state is made anew, the one that was made."""
        self.states = States()
        """All that goes into checkpoints."""
        self.sent: dict[str, np.ndarray] = {}
        """What went down last, by address."""

    def ground(self, stage: Stage) -> Ground:
        """What the stage's methods stand on."""
        taught = next((state.entries for state in self._made.values() if isinstance(state, Taught)), {})
        return Ground(self._study, stage, self._tags, self._forms, forms_of(taught))

    def go_down(self, stage: Stage) -> dict[str, np.ndarray]:
        """What goes out with the instructions of this round; states that are not there yet begin."""
        on = self.ground(stage)
        self._made = {side: self._state(side, on) for side in sides_of(on) if side.common_state.made_anew}
        self.sent, on = {}, self.ground(stage)
        for side in sides_of(on):
            self.sent |= going_down(on, side, self._state(side, on))
        return self.sent

    def learn(
        self, stage: Stage, number: int, before: Arrays, aggregated: Arrays, came: tuple[Arrays, float]
    ) -> Arrays:
        """Let the stage's methods take in a round; the entries that it ends with.

        `came` are the sums over sites, by address, and the share of the asked sites that answered.
        """
        on, (sums, share) = self.ground(stage), came
        for method in methods_of(stage):
            done = Round(on, number, before, aggregated, sums_of(on, method, sums), share)
            state, aggregated = method.after_aggregation(self._state(method, on), done)
            self.states.put(stage.name, state)
        return aggregated

    def _state(self, side: Side, on: Ground) -> State:
        if side.common_state.made_anew:
            return self._made[side] if side in self._made else side.begin_common(on, self._start)
        known = self.states.get(on.stage.name, side.common_state)
        if known is None:
            known = side.begin_common(on, self._start)
            self.states.put(on.stage.name, known)
        return known
