"""What one end of a federation remembers from visit to visit, or from round to round: typed, and carried by one rule.

Whoever remembers something declares a `State`: a frozen dataclass, each of whose fields is a group of arrays by name.
On disk and on the wire an array has an address, which says whose it is: stage, owner, field and name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Self, TypeVar

import numpy as np

from fedgraft.common.protocol.instructions import Arrays

_SEPARATOR = ":"
"""In an address; no entry of a model has it in its name, which the check of a plan makes sure of."""


@dataclass(frozen=True)
class State:
    """Groups of arrays by name. Most are by entry of the model: a control variate for each, say."""

    owner: ClassVar[str]
    """Whose it is, in addresses."""
    lasts: ClassVar[bool] = False
    """Whether it outlives its stage, for those that come after; all else ends with the stage that it is of."""
    made_anew: ClassVar[bool] = False
    """Whether it follows from the study and the start of the run, so that no checkpoint needs it."""

    def groups(self) -> dict[str, Arrays]:
        """The arrays by field."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, groups: Mapping[str, Arrays]) -> Self:
        """The state of these groups; a field that is not among them has no arrays."""
        return cls(**{field.name: dict(groups.get(field.name, {})) for field in fields(cls)})


S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class NoState(State):
    """The state of an end that remembers nothing."""

    owner: ClassVar[str] = "nothing"


def address(stage: str, kind: type[State], field: str, name: str) -> str:
    """Where an array of a state is, on disk and on the wire; of states that outlive their stage without its name."""
    return _SEPARATOR.join(("" if kind.lasts or kind.made_anew else stage, kind.owner, field, name))


def is_address(name: str) -> bool:
    """Whether this names an array of a state, and no entry of a model."""
    return _SEPARATOR in name


def sums_address(stage: str, owner: str, name: str) -> str:
    """Where sums of a method are, on the wire."""
    return _SEPARATOR.join((stage, owner, "sums", name))


class States:
    """All that one end carries, by stage and owner. Flat on disk, typed for whoever asks for what is its own."""

    def __init__(self, arrays: Arrays | None = None) -> None:
        """From what `arrays` gave; names that are no addresses are left out."""
        self._groups: dict[tuple[str, str], dict[str, dict[str, np.ndarray]]] = {}
        for name, array in (arrays or {}).items():
            if is_address(name):
                stage, owner, field, key = name.split(_SEPARATOR, 3)
                self._groups.setdefault((stage, owner), {}).setdefault(field, {})[key] = array

    def get(self, stage: str, kind: type[S]) -> S | None:
        """What was put there last; None if nothing was."""
        groups = self._groups.get(_place(stage, kind))
        return None if groups is None else kind.of(groups)

    def put(self, stage: str, state: State) -> None:
        """Keep `state` in place of what was there."""
        self._groups[_place(stage, type(state))] = {field: dict(group) for field, group in state.groups().items()}

    def begin(self, stage: str) -> None:
        """Let go of what belongs to other stages than this one."""
        self._groups = {place: groups for place, groups in self._groups.items() if place[0] in ("", stage)}

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by address."""
        return {
            _SEPARATOR.join((stage, owner, field, key)): array
            for (stage, owner), groups in self._groups.items()
            for field, group in groups.items()
            for key, array in group.items()
        }


def _place(stage: str, kind: type[State]) -> tuple[str, str]:
    return "" if kind.lasts or kind.made_anew else stage, kind.owner
