"""Code of one's own in a simulation: what is registered here can be named in a study like what fedgraft has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fedgraft.client.data.kinds import KINDS, DataKind
from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.table import TABLE
from fedgraft.common.models.backbones.named import ships
from fedgraft.common.plugins.loading import load_plugin
from fedgraft.common.plugins.registry import Kind, register
from fedgraft.common.study.methods.presets import presets
from fedgraft.common.study.stages.losses import OWN_LOSSES

__all__ = [
    "load_plugin",
    "register_backbone",
    "register_loss",
    "register_method",
    "register_metric",
    "register_reader",
]

Thing = TypeVar("Thing", bound=Callable[..., Any])


def register_backbone(name: str, factory: Thing | None = None) -> Any:
    """Let studies say `backbone: NAME`. Also as a decorator of the factory: `@fg.register_backbone("tiny")`.

    `factory(channels=, size=)` gives an `nn.Module` for images (N, C, H, W), `factory(columns=)` one for tables; its
    forward pass gives features (N, feature_dim), and it has an attribute `feature_dim`. Registered again, the new
    factory takes the old one's place. InputError for a name that fedgraft has. For a deployment the factory goes into a
    distribution, as an entry point of the group `fedgraft.backbones`.
    """
    if ships(name):
        raise InputError(f"fedgraft has a backbone {name!r} itself.", fix="Call yours something else.")
    return _registered(Kind.BACKBONES, name, factory)


def register_loss(name: str, made: Thing | None = None) -> Any:
    """Let studies say `losses: [{kind: NAME, weight: 1.0, options: {...}}]`. Also as a decorator of the class.

    The class is made with the options, and called by keyword with what its attribute `requires` names: "labels" are
    `outputs` and `targets`, task by task, of the cases whose label is known; "outputs" are those of all cases,
    "features" what the backbone makes of them. Its attribute `scope` is "per_sample" if it gives each case's own loss,
    (n,), which differential privacy needs, or "per_batch" if it gives one number. `tasks` names the kinds of tasks that
    it is for, if not all. InputError for a name that fedgraft has. The entry points' group is `fedgraft.losses`.
    """
    if name in OWN_LOSSES:
        raise InputError(f"fedgraft has a loss {name!r} itself.", fix="Call yours something else.")
    return _registered(Kind.LOSSES, name, made)


def register_reader(name: str, kind: DataKind) -> DataKind:
    """Let cohorts say `kind: NAME`. A `fedgraft.client.data.kinds.DataKind` says what reads such data.

    It also says what keys apply. Its reader is a class like `fedgraft.client.data.readers.reader.Reader`. InputError
    for a name that fedgraft has, or for what is no such kind. For a deployment it goes into a distribution, as an
    entry point of the group `fedgraft.readers`.
    """
    if name in KINDS:
        raise InputError(f"fedgraft has a kind of data {name!r} itself.", fix="Call yours something else.")
    if not isinstance(kind, DataKind):
        raise InputError(
            f"The reader {name!r} is no fedgraft.client.data.kinds.DataKind.", fix="See docs/how_to/plugins.md."
        )
    register(Kind.READERS, name, kind)
    return kind


def register_method(name: str, method: Thing | None = None) -> Any:
    """Let studies say `method: NAME`, or `methods: [{kind: NAME, ...}]` in a stage's local work. Also as a decorator.

    The class is one of `fedgraft.common.methods.memory.method.Method`: its `kind` is the name, its other fields are its
    keys. `common/methods/feddyn.py` is an example, and so is `examples/plugin/fedgraft_example/method.py`. InputError
    for a name that fedgraft has. The entry points' group is `fedgraft.methods`.
    """
    if name in presets():
        raise InputError(f"fedgraft has a method {name!r} itself.", fix="Call yours something else.")
    return _registered(Kind.METHODS, name, method)


def register_metric(name: str, made: Thing | None = None) -> Any:
    """Let studies say `evaluate: {metrics: [NAME]}`, and comparisons `metric: NAME`. Also as a decorator of the class.

    The class says `tasks`, `better` ("higher", "lower" or "near_0"), `low`, `high` and `adds`, the ends of what a case
    adds; `cases(outputs, targets)` gives what each case adds, (n, numbers), `value(sums)` the metric of their sums.
    InputError for a name that fedgraft has. The entry points' group is `fedgraft.metrics`.
    """
    if name in TABLE:
        raise InputError(f"fedgraft has a metric {name!r} itself.", fix="Call yours something else.")
    return _registered(Kind.METRICS, name, made)


def _registered(kind: Kind, name: str, thing: Thing | None) -> Any:
    def keep(found: Thing) -> Thing:
        if not callable(found):
            raise InputError(
                f"The {kind.word} {name!r} is {type(found).__name__}, which cannot be called.",
                fix="Give a class or a function; see docs/how_to/plugins.md.",
            )
        register(kind, name, found)
        return found

    return keep if thing is None else keep(thing)
