"""Methods of a gradient stage that cannot work, or whose memory nobody would carry, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedgraft.common.methods.memory.carried import AMethod, methods_of
from fedgraft.common.methods.memory.method import CommonSide, Ground, Method
from fedgraft.common.protocol.bundle import NAMES
from fedgraft.common.protocol.routing import Shapes, Tags, forms_of
from fedgraft.common.protocol.states import NoState, State, is_address
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import Study


def check_methods(on: Ground, local: Gradient) -> Iterator[str]:
    """Every reason why the stage's methods cannot work, or would lose what they remember."""
    for at, value in enumerate(local.methods):
        if not isinstance(value, Method):
            yield f"local.methods.{at} ({value.kind}): is no Method, so that nothing that it does would be done"
    found = methods_of(on.stage)
    kinds = [one.kind for one in found]
    for at, method in enumerate(found):
        key = f"local.methods.{at} ({method.kind})"
        if method.kind in kinds[:at]:
            yield f"{key}: is there twice, and what it remembers would be one and the same"
        yield from (f"{key}: {fault}" for fault in method.faults(on))
        if local.private is not None and method.not_private:
            yield f"{key}: {method.not_private}"
        if on.study.secure_aggregation and method.not_secure:
            yield f"{key}: {method.not_secure}"
        yield from (f"{key}: {fault}" for fault in _unsaid(method))
        if local.heads_first is not None and method.not_heads_first:
            yield f"local.heads_first: not with {method.description}: {method.not_heads_first}; leave one out"
        if local.inner_steps is not None and method.not_ahead:
            yield f"local.inner_steps: not with {method.description}: {method.not_ahead}; leave one out"
    if found and (odd := sorted(key for key in on.tags if is_address(key))):
        yield f"local.methods: the model's entry {odd[0]!r} is named as what methods remember is; rename it"


def _unsaid(method: AMethod) -> Iterator[str]:
    """What a method's file leaves out, without which its memory would be lost without a word."""
    cls = type(method)
    if method.own_state is not NoState:
        if method.own_state.lasts or method.own_state.made_anew:
            yield f"what a site remembers ({method.own_state.__name__}) ends with its stage; leave lasts and made_anew"
        if missing := _missing(cls, Method, "begin_own", "after_visit"):
            yield f"a site remembers {method.own_state.__name__}, and {missing} does not say what: it would be lost"
    if method.common_state is not NoState and (
        missing := _missing(cls, CommonSide, "begin_common", "after_aggregation")
    ):
        yield f"it remembers {method.common_state.__name__}, and {missing} does not say what: it would be lost"
    moves = not _missing(cls, CommonSide, "down") or not _missing(cls, Method, "up")
    if moves != bool(method.travels):
        yield "what goes down and up beside the entries is told in `travels`, and nothing else is"
    if method.sends_sums == bool(_missing(cls, Method, "up")):
        yield "what its `up` names goes up if, and only if, it says sends_sums"


def _missing(cls: type, base: type, *names: str) -> str:
    """The first of these methods that a class takes from the base; "" if it has all of them itself."""
    return next((name for name in names if getattr(cls, name) is getattr(base, name)), "")


def check_memory(study: Study, tags: Tags, forms: Shapes) -> Iterator[str]:
    """Begin what every method of the plan remembers, and see that all of it can be carried and sent."""
    for index, stage in enumerate(study.plan):
        on = Ground(study, stage, tags, forms)
        for at, method in enumerate(methods_of(stage)):
            where = f"plan.{index} ({stage.name}).local.methods.{at} ({method.kind})"
            yield from (f"{where}: {fault}" for fault in _begun(on, method))


def _begun(on: Ground, method: AMethod) -> Iterator[str]:
    zeros = on.zeros(tuple(on.tags))
    common, own = method.begin_common(on, zeros), method.begin_own(on, zeros)
    for state, kind in ((common, method.common_state), (own, method.own_state)):
        if type(state) is not kind:
            yield f"remembers a {type(state).__name__}, which nobody carries: it has said {kind.__name__}"
            return
        yield from _odd(state)
    for field, group in method.down(on).items():
        here = common.groups().get(field, {})
        if forms_of({name: here[name] for name in group if name in here}) != dict(group):
            yield f"what goes down as {field} is not what the coordinator's {method.common_state.__name__} begins with"


def _odd(state: State) -> Iterator[str]:
    for field, group in state.groups().items():
        for name, array in group.items():
            if not isinstance(array, np.ndarray) or array.dtype.name not in NAMES:
                yield f"{field} of {type(state).__name__} holds {name!r}, which is no array of a type that can be kept"
