"""Whose code it is: a distribution at one version, or a file of this machine by its content. A value of a study."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from fedgraft.common.base.errors import StudyError
from fedgraft.common.base.value import Value
from fedgraft.common.config.config_files import describe

LOCAL = "sha256:"
"""How the version of code begins that is no distribution's: it is what the code is."""

_VERSION = rf"^({LOCAL}[0-9a-f]{{64}}|[A-Za-z0-9][A-Za-z0-9.+!_-]{{0,63}})$"


class Plugin(Value):
    """The distribution that brings a backbone, a loss or a metric, and its version; in a file also `name==version`.

    Of a file or module that a simulation was given, or of what was registered in a notebook, the version is its
    content: `sha256:` and 64 hex digits. Only simulations have such.
    """

    distribution: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")]
    """The name under which it is installed."""
    version: Annotated[str, Field(pattern=_VERSION)]
    """Exactly this version."""

    @model_validator(mode="before")
    @classmethod
    def _in_short(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name, equal, version = value.partition("==")
        if not equal:
            raise ValueError("write NAME==VERSION, such as my-backbones==1.2.0")
        return {"distribution": name.strip(), "version": version.strip()}

    @property
    def is_local(self) -> bool:
        """Whether it is a file of one machine, which no other has."""
        return self.version.startswith(LOCAL)

    @property
    def key(self) -> str:
        """The name by which policies find it."""
        return canonical(self.distribution)

    def __str__(self) -> str:
        return f"{self.distribution}=={self.version}"


def canonical(name: str) -> str:
    """A distribution's name as packaging compares it: small letters, one hyphen for dots, hyphens and underscores."""
    return re.sub(r"[-_.]+", "-", name).lower()


def plugins_in(data: Any, source: str) -> tuple[Plugin, ...]:
    """Whose code a study names, read without the study; StudyError if that cannot be read."""
    named = data.get("plugins", ()) if isinstance(data, Mapping) else ()
    try:
        return TypeAdapter(tuple[Plugin, ...]).validate_python(named)
    except ValidationError as error:
        raise StudyError(source, [f"plugins.{line}" for line in describe(error)]) from None
