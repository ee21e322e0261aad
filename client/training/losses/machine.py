"""The methods of a visit at a site: each with what it remembers, and with the model as it may use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import RunError
from fedgraft.common.methods.memory.carried import AMethod, methods_of, up_shapes
from fedgraft.common.methods.memory.method import Ground, Visit
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import forms_of
from fedgraft.common.protocol.states import States, sums_address


class LocalMachine:
    """The model at this site."""

    def __init__(self, local_model: LocalModel) -> None:
        self._local_model = local_model

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The model's parameters by entry."""
        return self._local_model.parameters

    def tensor(self, array: np.ndarray) -> Tensor:
        """A copy of an array on the model's device."""
        return torch.tensor(array, device=self._local_model.device)


@dataclass(frozen=True)
class Bound:
    """A method in one visit."""

    method: AMethod
    visit: Visit[Any, Any]


def bound(on: Ground, number: int, received: Arrays, own: States, came: States) -> tuple[Bound, ...]:
    """The stage's methods in round `number`: with what the site remembers, or begins with, and what came down."""
    found = []
    for method in methods_of(on.stage):
        mine = own.get(on.stage.name, method.own_state)
        common = came.get(on.stage.name, method.common_state)
        visit = Visit(
            on,
            number,
            received,
            method.begin_own(on, received) if mine is None else mine,
            method.common_state.of({}) if common is None else common,
        )
        found.append(Bound(method, visit))
    return tuple(found)


@dataclass(frozen=True)
class Remembered:
    """What the methods of a visit leave behind, by address: the site's states, and sums that go up."""

    own: Arrays
    sums: Arrays


def after(bounds: tuple[Bound, ...], local_model: LocalModel, trained: Arrays) -> Remembered:
    """Let the methods take in a visit that ended with the entries `trained`. RunError if one sends what it did not say.

    What a method remembers is kept whatever fields it has; what it sends must be as the coordinator expects it.
    """
    states = States()
    sums: dict[str, np.ndarray] = {}
    for one in bounds:
        on, machine = one.visit.on, LocalMachine(local_model)
        left = one.method.after_visit(one.visit, machine, trained)
        states.put(on.stage.name, left.own)
        sums |= {sums_address(on.stage.name, one.method.kind, name): array for name, array in left.sums.items()}
    wanted = up_shapes(bounds[0].visit.on) if bounds else {}
    if forms_of(sums) != wanted:
        raise RunError("A method's sums are not those that it said it would send.")
    return Remembered(states.arrays(), sums)
