"""Methods of a gradient stage by name: which file has each. Values; `fedgraft.common.methods` has what they do.

A method's file is loaded when a study names it, as those of distributions beside fedgraft are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.value import Value
from fedgraft.common.plugins.registry import Kind, load

_HERE = "fedgraft.common.methods"
METHODS: Mapping[str, str] = {
    "scaffold": f"{_HERE}.scaffold:Scaffold",
    "feddyn": f"{_HERE}.feddyn:FedDyn",
    "fedsam": f"{_HERE}.fedsam:FedSAM",
    "fedala": f"{_HERE}.fedala:FedALA",
    "apfl": f"{_HERE}.apfl:APFL",
    "moon": f"{_HERE}.moon:Moon",
    "fedproto": f"{_HERE}.fedproto:FedProto",
    "feddecorr": f"{_HERE}.feddecorr:FedDecorr",
}
"""By kind the module and the class of a method."""


class MethodValue(Value, ABC):
    """The keys of a method, and what a plan must know of it before anything of it runs."""

    kind: str

    summary: ClassVar[str] = ""
    """One line: what it does, and the paper."""
    sends_sums: ClassVar[bool] = False
    """Whether a site sends sums over its cases beside the entries that the stage shares."""
    sees_features: ClassVar[bool] = False
    """Whether it looks at features, and not only at what heads make of them."""
    per_batch: ClassVar[bool] = False
    """Whether it needs whole batches, which then cannot be worked on in parts when memory is short."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What it adds to a stage, as `study explain` prints it: "control variates (SCAFFOLD)"."""

    @classmethod
    @abstractmethod
    def stages(cls, method: Any) -> Any:
        """The stages of the preset of that name, from its settings (`study.methods.recipes.NamedMethod`)."""


def method_class(kind: str) -> type[MethodValue]:
    """The class of the method of that kind: fedgraft's, or a plug-in's (`fedgraft.methods`, a `MethodValue`).

    ValueError with the names that there are.
    """
    if kind not in METHODS:
        return _plugged(kind)
    module, _, name = METHODS[kind].partition(":")
    found: type[MethodValue] = getattr(import_module(module), name)
    return found


def _plugged(kind: str) -> type[MethodValue]:
    try:
        found = load(Kind.METHODS, kind, METHODS)
    except InputError as error:
        raise ValueError(str(error)) from None
    if not (isinstance(found, type) and issubclass(found, MethodValue)):
        raise ValueError(f"the method {kind!r} of a plug-in is no class of Method (docs/how_to/plugins.md)")
    if (own := found.model_fields["kind"].default) != kind:
        raise ValueError(f"the method {kind!r} of a plug-in calls itself {own!r} (its `kind`); use one name for both")
    return found


def _by_kind(value: Any) -> Any:
    if isinstance(value, MethodValue):
        return value
    given = {"kind": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("kind"), str):
        raise ValueError("must be the name of a method, or a mapping with its `kind`")
    return method_class(given["kind"]).model_validate(given)


AnyMethod = Annotated[SerializeAsAny[MethodValue], BeforeValidator(_by_kind)]
