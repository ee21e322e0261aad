"""A method whose memory would be lost is refused before the first round, with what its file leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from fedgraft.common.base.errors import StudyError
from fedgraft.common.checks.check import check
from fedgraft.common.checks.faults.check_methods import check_memory
from fedgraft.common.methods.memory.method import Ground, Left, Method
from fedgraft.common.protocol.routing import Shapes
from fedgraft.common.protocol.states import NoState, State, States
from fedgraft.common.study.plan import Gradient, Role, Tag
from fedgraft.common.study.study import Study, parse_study

TAGS = {"backbone.w": Tag(Role.BODY, 1), "heads.cls.weight": Tag(Role.HEAD, 2, "cls")}
FORMS: Shapes = {"backbone.w": ((3,), "float32"), "heads.cls.weight": ((2, 3), "float32")}


@dataclass(frozen=True)
class Seen(State):
    """By entry."""

    at: Mapping[str, np.ndarray]

    owner: ClassVar[str] = "seen"


class Careful(Method[Seen, Seen]):
    """Says all that it remembers."""

    kind: Literal["careful"] = "careful"
    own_state: ClassVar[type[State]] = Seen
    common_state: ClassVar[type[State]] = Seen
    travels: ClassVar[str] = "what was seen comes down"

    @property
    def description(self) -> str:
        return "care"

    def down(self, on: Ground) -> Mapping[str, Shapes]:
        return {"at": on.forms_of(on.shared)}

    def begin_common(self, on: Ground, start: Any) -> Seen:
        return Seen(on.zeros(on.shared))

    def after_aggregation(self, state: Seen, done: Any) -> tuple[Seen, dict[str, np.ndarray]]:
        return state, dict(done.aggregated)

    def begin_own(self, on: Ground, received: Any) -> Seen:
        return Seen(on.zeros(on.shared))

    def after_visit(self, visit: Any, machine: Any, trained: Any) -> Left[Seen]:
        return Left(visit.own)


def faults(*methods: Method[Any, Any]) -> list[str]:
    plan = [{"name": "train", "local": {"kind": "gradient", "steps": 2}, "share": "all", "aggregate": {"kind": "mean"}}]
    study = parse_study({"name": "x", "tasks": [{"name": "cls", "classes": ["a", "b"]}], "plan": plan}, "here")
    assert isinstance(study.plan[0].local, Gradient)
    stage = study.plan[0].model_copy(update={"local": study.plan[0].local.model_copy(update={"methods": methods})})
    study = Study.model_construct(**{**dict(study), "plan": (stage,)})
    return check(study, TAGS) or list(check_memory(study, TAGS, FORMS))


def test_a_method_that_says_all_is_let_through() -> None:
    assert faults(Careful()) == []


def test_what_nobody_would_carry_is_refused_with_the_reason() -> None:
    class NoAfter(Careful):
        after_visit = Method.after_visit

    class NoBegin(Careful):
        begin_own = Method.begin_own

    class NoAggregation(Careful):
        after_aggregation = Method.after_aggregation

    class Undeclared(Careful):
        own_state = NoState

    class OtherDown(Careful):
        def down(self, on: Ground) -> Mapping[str, Shapes]:
            return {"there": on.forms_of(on.shared)}

    class Silent(Careful):
        sends_sums = True

    class Quiet(Careful):
        travels = ""

    class Words(Careful):
        def begin_own(self, on: Ground, received: Any) -> Seen:
            return Seen({"backbone.w": np.array(["a"])})

    for method, says in (
        (NoAfter(), "a site remembers Seen, and after_visit does not say what: it would be lost"),
        (NoBegin(), "a site remembers Seen, and begin_own does not say what"),
        (NoAggregation(), "it remembers Seen, and after_aggregation does not say what"),
        (Undeclared(), "remembers a Seen, which nobody carries: it has said NoState"),
        (OtherDown(), "what goes down as there is not what the coordinator's Seen begins with"),
        (Silent(), "if, and only if, it says sends_sums"),
        (Quiet(), "is told in `travels`"),
        (Words(), "holds 'backbone.w', which is no array of a type that can be kept"),
    ):
        found = faults(method)
        assert any(says in fault and "local.methods.0 (careful)" in fault for fault in found), (says, found)


def test_one_method_twice_would_share_one_memory() -> None:
    assert any("is there twice" in fault for fault in faults(Careful(), Careful()))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"kind": "feddin"}, ["methods.0: There is no method 'feddin'; did you mean feddyn?"]),
        (
            {"kind": "feddyn", "alpha": -1, "beta": 2},
            ["methods.0.alpha: Input should be greater", "methods.0.beta: "],
        ),
        ({"alpha": 1}, ["methods.0: must be the name of a method, or a mapping with its `kind`"]),
    ],
)
def test_keys_of_methods_are_read_strictly(value: dict[str, Any], says: list[str]) -> None:
    local = {"kind": "gradient", "steps": 2, "methods": [value]}
    plan = [{"name": "train", "local": local, "share": "all", "aggregate": {"kind": "mean"}}]
    with pytest.raises(StudyError) as caught:
        parse_study({"name": "x", "tasks": [{"name": "cls", "classes": ["a", "b"]}], "plan": plan}, "here")
    assert all(f"plan.0.local.gradient.{one}" in fault for one, fault in zip(says, caught.value.faults, strict=True))


def test_states_come_back_from_the_disk_as_they_went_there() -> None:
    states = States()
    states.put("train", Seen({"backbone.w": np.arange(3.0)}))
    states.put("other", Seen({"a:b/c": np.zeros(2)}))
    again = States({**states.arrays(), "backbone.w": np.zeros(3)})
    found = again.get("train", Seen)
    assert found is not None
    assert found.at["backbone.w"].tolist() == [0, 1, 2]
    assert list(again.get("other", Seen).at) == ["a:b/c"]  # type: ignore[union-attr]
    again.begin("train")
    assert again.get("other", Seen) is None
    assert again.get("train", Seen) is not None
