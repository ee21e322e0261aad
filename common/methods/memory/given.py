"""What the coordinator gives to sites for losses that ask for it: the start of the run, a teacher, released moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.cox import COEFFICIENTS, CoxSteps
from fedgraft.common.closed_form.moments import COVARIANCE, MEAN, FeatureMoments
from fedgraft.common.methods.memory.method import CommonSide, Ground
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import Shapes, needs_moments
from fedgraft.common.protocol.states import State
from fedgraft.common.study.model_spec import Teacher
from fedgraft.common.study.plan import FRESH, Gradient, Role, Statistics
from fedgraft.common.study.stages.losses import Proximal


@dataclass(frozen=True)
class Start(State):
    """The entries that the run began with."""

    entries: Arrays

    owner: ClassVar[str] = "start"
    made_anew: ClassVar[bool] = True


@dataclass(frozen=True)
class StartSide(CommonSide[Start]):
    """The start of the run, for a pull towards it: of heads and adapters, of which nothing came pretrained, none."""

    common_state: ClassVar[type[State]] = Start

    def down(self, on: Ground) -> Mapping[str, Shapes]:
        """Trained parameters, without heads and adapters."""
        return {"entries": on.forms_of(tuple(key for key in on.trained if on.tags[key].role not in FRESH))}

    def begin_common(self, on: Ground, start: Arrays) -> Start:
        """All entries of the start."""
        del on
        return Start(start)


@dataclass(frozen=True)
class Taught(State):
    """The entries of a finished model that teaches."""

    entries: Arrays

    owner: ClassVar[str] = "teacher"
    made_anew: ClassVar[bool] = True


@dataclass(frozen=True)
class TeacherSide(CommonSide[Taught]):
    """A finished model, whose answers sites learn."""

    teacher: Teacher

    common_state: ClassVar[type[State]] = Taught

    def down(self, on: Ground) -> Mapping[str, Shapes]:
        """All of the teacher's entries."""
        return {"entries": on.teacher}

    def begin_common(self, on: Ground, start: Arrays) -> Taught:
        """The teacher's entries, read from where the study says. WeightsError if they do not fit."""
        from fedgraft.common.models.initialise import teach  # needs torch, and a study is checked without

        del start
        return Taught(teach(on.study, on.stage))


@dataclass(frozen=True)
class MomentsSide(CommonSide[FeatureMoments]):
    """Moments that an earlier stage has released; that there is one is checked before the first round."""

    common_state: ClassVar[type[State]] = FeatureMoments

    def down(self, on: Ground) -> Mapping[str, Shapes]:
        """Mean and covariance of features."""
        dim = _features(on)
        return {"moments": {MEAN: ((dim,), "float32"), COVARIANCE: ((dim, dim), "float32")}}

    def begin_common(self, on: Ground, start: Arrays) -> FeatureMoments:
        """RunError: they come from an earlier stage."""
        del start
        raise RunError(f"Stage {on.stage.name!r} needs moments that no stage before it has released.")


@dataclass(frozen=True)
class CoxSide(CommonSide[CoxSteps]):
    """Coefficients of Cox's regression, at which the sites work out what the next step needs; they begin with 0."""

    common_state: ClassVar[type[State]] = CoxSteps

    def down(self, on: Ground) -> Mapping[str, Shapes]:
        """One for each feature."""
        return {COEFFICIENTS: {COEFFICIENTS: ((_features(on),), "float64")}}

    def begin_common(self, on: Ground, start: Arrays) -> CoxSteps:
        """No feature says anything."""
        del start
        return CoxSteps({COEFFICIENTS: np.zeros(_features(on))}, {})


def _features(on: Ground) -> int:
    """How many features a case has."""
    heads = (key for key, tag in on.tags.items() if tag.role is Role.HEAD)
    return next(on.forms[key][0][1] for key in heads if len(on.forms[key][0]) == 2)


def given(on: Ground) -> Iterator[CommonSide[Any]]:
    """What the stage's losses, or its sums, ask of the coordinator."""
    local, teacher = on.stage.local, on.study.teacher_of(on.stage)
    losses = local.losses if isinstance(local, Gradient) else ()
    if any(isinstance(loss, Proximal) and loss.to == "pretrained" for loss in losses):
        yield StartSide()
    if teacher is not None:
        yield TeacherSide(teacher)
    if needs_moments(on.stage):
        yield MomentsSide()
    if isinstance(local, Statistics) and local.of == "hazards":
        yield CoxSide()
