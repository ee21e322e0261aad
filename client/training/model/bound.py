"""The methods of a visit: each with what the site remembers for it, and with what came of the coordinator's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedgraft.common.base.errors import RunError
from fedgraft.common.base.seeds import derive
from fedgraft.common.methods.memory.carried import AMethod, methods_of, up_shapes
from fedgraft.common.methods.memory.method import Ground, Machine, MethodVisit
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import forms_of
from fedgraft.common.protocol.states import State, States, sums_address


@dataclass
class Bound:
    """A method in one visit, which moves on: what the site remembers may change as it begins, and with its steps."""

    method: AMethod
    visit: MethodVisit[Any, Any]

    def remembers(self, own: State) -> None:
        """From now on the site remembers this."""
        self.visit = replace(self.visit, own=own)


def bound(on: Ground, number: int, received: Arrays, states: tuple[States, States], seed: int = 0) -> tuple[Bound, ...]:
    """The stage's methods in round `number`.

    `states` are what the site remembers, in whose place a method may begin, and what came down.
    """
    found, (own, came) = [], states
    for method in methods_of(on.stage):
        mine = own.get(on.stage.name, method.own_state)
        common = came.get(on.stage.name, method.common_state)
        visit = MethodVisit(
            on,
            number,
            received,
            method.begin_own(on, received) if mine is None else mine,
            method.common_state.of({}) if common is None else common,
            derive(seed, method.kind),
        )
        found.append(Bound(method, visit))
    return tuple(found)


def starts(bounds: tuple[Bound, ...], machine: Machine) -> dict[str, np.ndarray]:
    """Entries that the visit begins with by its methods, in place of those that came or are kept."""
    found: dict[str, np.ndarray] = {}
    for one in bounds:
        own, entries = one.method.start(one.visit, machine)
        one.remembers(own)
        found |= entries
    return found


@dataclass(frozen=True)
class Remembered:
    """What the methods of a visit leave behind, by address: the site's states, and sums that go up."""

    own: Arrays
    sums: Arrays


def after(bounds: tuple[Bound, ...], machine: Machine, trained: Arrays) -> Remembered:
    """Let the methods take in a visit that ended with the entries `trained`. RunError if one sends what it did not say.

    What a method remembers is kept whatever is in it; what it sends must be as the coordinator expects it.
    """
    states = States()
    sums: dict[str, np.ndarray] = {}
    for one in bounds:
        on = one.visit.on
        left = one.method.after_visit(one.visit, machine, trained)
        states.put(on.stage.name, left.own)
        sums |= {sums_address(on.stage.name, one.method.kind, name): array for name, array in left.sums.items()}
    wanted = up_shapes(bounds[0].visit.on) if bounds else {}
    if forms_of(sums) != wanted:
        raise RunError("A method's sums are not those that it said it would send.")
    return Remembered(states.arrays(), sums)
