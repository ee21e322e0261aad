"""What studies, plans and policies are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value that knows exactly its own keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def unless(default: Any) -> Callable[[Any], bool]:
    """For a key that came later than others: it is written only where it says something.

    A study that does not use it then has the digest that it always had, and older sites can read it.
    """
    return lambda value: bool(value == default)
