"""What the heads predict. A target is a class index, or -1 for "not known"."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

UNKNOWN = -1
"""The target of a case whose label is not known; losses and metrics leave such cases out."""


class Task(BaseModel):
    """One question asked of every case: a name and its two or more classes, in the order of the logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "cls"
    classes: tuple[str, ...] = Field(min_length=2)

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError("class names must differ")
        return classes
