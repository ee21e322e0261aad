"""The one rule by which states are sent: what goes down to sites, and what comes up from them, by address."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedgraft.common.closed_form.shapes import expected
from fedgraft.common.methods.memory.given import given
from fedgraft.common.methods.memory.method import CommonSide, Ground, Method
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import Shapes, own
from fedgraft.common.protocol.states import State, States, address, sums_address
from fedgraft.common.study.plan import Gradient, Stage

AMethod = Method[Any, Any]
Side = CommonSide[Any]


def methods_of(stage: Stage) -> tuple[AMethod, ...]:
    """The stage's methods, with all that they do."""
    found = stage.local.methods if isinstance(stage.local, Gradient) else ()
    return tuple(one for one in found if isinstance(one, Method))


def sides_of(on: Ground) -> tuple[Side, ...]:
    """All for which the coordinator may remember something in this stage, in a fixed order."""
    return (*given(on), *methods_of(on.stage))


def down_shapes(on: Ground) -> Shapes:
    """By address, shape and type of what sites get beside the model in this stage."""
    return {
        address(on.stage.name, side.common_state, field, name): form
        for side in sides_of(on)
        for field, group in side.down(on).items()
        for name, form in group.items()
    }


def going_down(on: Ground, side: Side, state: State) -> dict[str, Any]:
    """Of the coordinator's state what goes to sites, by address."""
    groups = state.groups()
    return {
        address(on.stage.name, side.common_state, field, name): groups[field][name]
        for field, group in side.down(on).items()
        for name in group
    }


def up_shapes(on: Ground) -> Shapes:
    """By address, shape and type of the sums that come up beside the stage's entries."""
    return {
        sums_address(on.stage.name, one.kind, name): form
        for one in methods_of(on.stage)
        for name, form in one.up(on).items()
    }


def sums_of(on: Ground, method: AMethod, arrays: Arrays) -> dict[str, Any]:
    """A method's own sums, by name, from what is by address; what did not come is left out."""
    names = {name: sums_address(on.stage.name, method.kind, name) for name in method.up(on)}
    return {name: arrays[place] for name, place in names.items() if place in arrays}


def personal(stage: Stage) -> bool:
    """Whether sites answer with other entries than those that all share, by a method of the stage."""
    return any(type(method).answers is not Method.answers for method in methods_of(stage))


def in_place(on: Ground, kept: Arrays, received: Arrays) -> dict[str, np.ndarray]:
    """With what a site answers in place of the coordinator's entries: by what it has kept until the stage's end.

    Entries that the stage does not share, and those that its methods answer with.
    """
    found = {key: array for key, array in kept.items() if key in on.tags and own(on.stage, on.tags, key)}
    states = States(kept)
    for method in methods_of(on.stage):
        if (mine := states.get(on.stage.name, method.own_state)) is not None:
            found |= method.answers(mine, received)
    return found


def sent_shapes(on: Ground, state: Arrays) -> Shapes:
    """All that an update of this stage holds: entries or sums of the plan, and the sums of its methods."""
    return {**expected(on.study, on.stage, on.tags, state), **up_shapes(on)}
