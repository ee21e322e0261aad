"""A method in one place: what it adds to the training at a site, what it makes of an aggregation, what it remembers.

A method that remembers something declares a state of either end, and says how it begins and how it goes on. The engine
carries these states: from visit to visit on the site's disk, from round to round in the coordinator's checkpoints; it
sends what `down` and `up` name, adds up what comes up, masks it with all else, and lets the site's policy decide on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar, cast

import numpy as np

from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.rates import rate_factor, rate_of, stepped
from fedgraft.common.protocol.routing import Shapes, Tags, changed, sent
from fedgraft.common.protocol.states import NoState, State
from fedgraft.common.study.methods.recipes import NamedMethod, rounds_of
from fedgraft.common.study.plan import Gradient, Role, Stage
from fedgraft.common.study.stages.methods import MethodValue
from fedgraft.common.study.study import Study

if TYPE_CHECKING:
    from torch import Tensor, nn

S = TypeVar("S", bound=State)
C = TypeVar("C", bound=State)

_NO_PARAMETERS = frozenset({Role.NORM_STATS, Role.SCALE})


@dataclass(frozen=True)
class Ground:
    """What a method stands on: a stage of a study, and the model's entries with their tags, shapes and types."""

    study: Study
    stage: Stage
    tags: Tags
    forms: Shapes
    teacher: Shapes = field(default_factory=dict)
    """Of the model that teaches in this stage, if there is one."""

    @property
    def spec(self) -> Gradient:
        """The stage's local work."""
        assert isinstance(self.stage.local, Gradient)
        return self.stage.local

    @cached_property
    def changed(self) -> tuple[str, ...]:
        """Entries that a visit changes, running statistics among them."""
        return changed(self.stage, self.tags)

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Parameters that a visit trains; running statistics are none."""
        return tuple(key for key in self.changed if self.tags[key].role not in _NO_PARAMETERS)

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """Those of them that are sent and aggregated."""
        return tuple(key for key in sent(self.stage, self.tags) if self.tags[key].role not in _NO_PARAMETERS)

    @property
    def below_heads(self) -> bool:
        """Whether anything is trained that features come from."""
        return any(self.tags[key].role not in (Role.HEAD, Role.DOMAIN_DISCRIMINATOR) for key in self.trained)

    def forms_of(self, keys: tuple[str, ...]) -> Shapes:
        """Shapes and types of these entries."""
        return {key: self.forms[key] for key in keys}

    def zeros(self, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
        """An array of zeros for each of these entries."""
        return {key: np.zeros(*self.forms[key]) for key in keys}

    def way(self, key: str, number: int) -> float:
        """The sum of an entry's learning rates over the steps of round `number`. Needs `steps`.

        Steps ahead are no steps of it, and heads that are trained first have steps of their own.
        """
        spec = self.spec
        if spec.heads_first is not None and self.tags[key].role in (Role.HEAD, Role.DOMAIN_DISCRIMINATOR):
            spec = spec.model_copy(update={"steps": spec.heads_first})
        return stepped(spec, self.tags[key], number, self.stage.rounds)

    def rate(self, key: str, progress: float) -> float:
        """An entry's learning rate when `progress` (0 to 1) of the stage is done."""
        return rate_of(self.spec, self.tags[key]) * rate_factor(self.spec, progress)


class Cases(Protocol):
    """A batch of the site's own cases, on the device."""

    @property
    def inputs(self) -> Tensor:
        """As the model takes them, (N, ...)."""

    @property
    def targets(self) -> Mapping[str, Tensor]:
        """By task; what is not known is -1, or not a number."""


class Looked(Protocol):
    """A batch, and what the model says of it."""

    @property
    def batch(self) -> Cases:
        """The cases."""

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        """By task the model's answers, (N, outputs)."""

    @property
    def features(self) -> Tensor | None:
        """What the heads see, (N, d); there if the method says that it `sees_features`."""


class Machine(Protocol):
    """The model at a site, as a method may use it."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The model's parameters by entry."""

    def tensor(self, array: np.ndarray) -> Tensor:
        """A copy of an array on the model's device."""

    def still(self) -> AbstractContextManager[None]:
        """Within, passes through the model leave its running statistics as they were."""

    def twin(self, entries: Arrays) -> Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]:
        """Another model with these entries in place of the present ones: features and answers, without gradients."""

    def slope(self, entries: Mapping[str, Tensor], cases: Cases) -> Mapping[str, Tensor]:
        """The gradient of the loss over labels at these entries, of these cases; running statistics stay."""

    def batches(self, share: float, size: int, seed: int) -> Iterator[Cases]:
        """A `share` of the labelled training cases, drawn by `seed`, in batches."""

    def seen(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """All labelled training cases, in order, as the model's features (N, d) see them, with their targets."""


@dataclass(frozen=True)
class MethodVisit(Generic[S, C]):
    """One visit of a site: `number` counts its round from 1, `received` are the coordinator's entries.

    `own` is what the site remembers, `common` what came down of the coordinator's state.
    """

    on: Ground
    number: int
    received: Arrays
    own: S
    common: C
    seed: int = 0
    """For whatever a method draws in this visit."""


Pass = Callable[[], "Tensor"]
"""Forwards and backwards over a step's cases: adds to the gradients of the parameters, and gives the loss."""


@dataclass(frozen=True)
class MethodStep(Generic[S]):
    """What a method adds to each step of a visit."""

    regulariser: Callable[[], Mapping[str, Tensor]] | None = None
    """A gradient by parameter, which looks at no case, and so is added after any noise."""
    loss: Callable[[Looked], Tensor] | None = None
    """A loss over a batch, added to the others as it is."""
    around: Callable[[Pass, float], Tensor] | None = None
    """Called in place of the pass that leaves the step's gradients, with that pass and with how much of the stage is
    done (0 to 1). It may pass several times, and must leave the gradients of the step; it gives the loss."""
    own: Callable[[], S] | None = None
    """What the site remembers once the steps are done, where they change it."""


@dataclass(frozen=True)
class Left(Generic[S]):
    """What a visit leaves behind: the site's new state, and sums that go up with its entries."""

    own: S
    sums: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """What a round came to: entries before and aggregated, sums over sites, and the share of the sites that answered.

    `number` counts the stage's rounds from 1.
    """

    on: Ground
    number: int
    before: Arrays
    aggregated: Arrays
    sums: Arrays
    share: float


class CommonSide(Generic[C]):
    """What the coordinator remembers for a stage, and what of it goes to sites."""

    common_state: ClassVar[type[State]] = NoState

    def down(self, on: Ground) -> Mapping[str, Shapes]:
        """What of the coordinator's state goes to sites, by field: names, shapes and types."""
        del on
        return {}

    def begin_common(self, on: Ground, start: Arrays) -> C:
        """The coordinator's state before a stage's first round; `start` are the entries that the run began with."""
        del on, start
        return cast(C, self.common_state())

    def after_aggregation(self, state: C, done: Round) -> tuple[C, dict[str, np.ndarray]]:
        """The coordinator's state after a round, and the entries that the round ends with."""
        return state, dict(done.aggregated)


class Method(MethodValue, CommonSide[C], Generic[S, C]):
    """A method: its keys as fields, its memory as two states. Docstrings give name, equation and paper."""

    own_state: ClassVar[type[State]] = NoState
    """What a site remembers; it never leaves it."""
    not_private: ClassVar[str] = "it is not built for private work"
    """Why it cannot be part of private work; "" if it can: then it adds to steps what looks at no case, alone."""
    not_secure: ClassVar[str] = ""
    """Why it cannot be part of a study with secure aggregation; "" if it can."""
    not_heads_first: ClassVar[str] = "it does not say that it works with steps on heads alone before the others"
    """Why it cannot be part of a stage with `heads_first`; "" if it can: `step` is then asked once for each part."""
    not_ahead: ClassVar[str] = "it does not say that it works with steps ahead, which are taken back"
    """Why it cannot be part of a stage with `inner_steps`; "" if it can: what it adds is added to those as well."""
    travels: ClassVar[str] = ""
    """What `down` and `up` are, as `study explain` says it; "" if nothing travels beside the entries."""

    def faults(self, on: Ground) -> Iterator[str]:
        """Why it cannot work in this stage; nothing if it can."""
        del on
        yield from ()

    def up(self, on: Ground) -> Shapes:
        """Sums over the site's cases that come back with its entries, and are added up over sites, in float64."""
        del on
        return {}

    def plausible(self, on: Ground, sums: Arrays) -> bool:
        """Whether these finite numbers, by name as in `up`, can be sums over a site's cases."""
        del on, sums
        return True

    def begin_own(self, on: Ground, received: Arrays) -> S:
        """The site's state before its first visit in a stage."""
        del on, received
        return cast(S, self.own_state())

    def start(self, visit: MethodVisit[S, C], machine: Machine) -> tuple[S, Arrays]:
        """The site's state as the visit begins, and entries to begin with, where they are not those that came."""
        del machine
        return visit.own, {}

    def step(self, visit: MethodVisit[S, C], machine: Machine) -> MethodStep[S]:
        """What is added to each step of a visit; asked once for each visit, and for each part of it (`heads_first`)."""
        del visit, machine
        return MethodStep()

    def after_visit(self, visit: MethodVisit[S, C], machine: Machine, trained: Arrays) -> Left[S]:
        """The site's state after a visit that ended with the entries `trained`, and what goes up."""
        del machine, trained
        return Left(visit.own)

    def answers(self, own: S, received: Arrays) -> Arrays:
        """Entries with which the site answers for its own cases, where these are not the coordinator's."""
        del own, received
        return {}

    @classmethod
    def stages(cls, method: NamedMethod) -> tuple[Stage, ...]:
        """FedAvg with this method, unless it says otherwise."""
        plain = cls.model_validate({"kind": cls.model_fields["kind"].default})
        return (rounds_of(with_method(method, plain), "all"),)


def with_method(method: NamedMethod, value: MethodValue, **changes: object) -> NamedMethod:
    """The same settings with a method in their local work, and other keys of that."""
    methods = (*method.local.methods, value)
    return method.model_copy(update={"local": method.local.model_copy(update={"methods": methods, **changes})})
