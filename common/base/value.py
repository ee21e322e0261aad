"""What studies, plans and policies are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator


class Value(BaseModel):
    """A frozen value that knows exactly its own keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _mappings_in_one_order(self) -> Self:
        # Files, canonical JSON and people order keys differently; what is enumerated must not depend on who wrote it.
        for name, value in self.__dict__.items():
            if isinstance(value, dict):
                self.__dict__[name] = _in_order(value)
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's; what was worked out of the old values, such as a digest, is not taken along.

        TypeError for a key that does not exist, which pydantic would leave out without a word.
        """
        if unknown := sorted(set(update or ()) - set(type(self).model_fields)):
            raise TypeError(f"{type(self).__name__} has no {', '.join(unknown)}")
        made = super().model_copy(update=update, deep=deep)
        for name in set(made.__dict__) - set(type(made).model_fields):
            del made.__dict__[name]
        return made


def _in_order(mapping: dict[Any, Any]) -> dict[Any, Any]:
    ordered = sorted(mapping.items(), key=lambda item: str(item[0]))
    return {key: _in_order(value) if isinstance(value, dict) else value for key, value in ordered}


def unless(default: Any) -> Callable[[Any], bool]:
    """For a key that came later than others: it is written only where it says something.

    A study that does not use it then has the digest that it always had, and older sites can read it.
    """
    return lambda value: bool(value == default)
