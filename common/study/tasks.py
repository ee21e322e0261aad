"""What the heads predict: one question asked of every case, and how "not known" is said.

A target is a class index (-1 = not known), yes or no per label (1, 0; NaN = not known), a value in its unit (NaN = not
known), or a mask (1 inside, 0 outside; -1 everywhere = not known).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_serializer
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from fedgraft.common.base.value import Value

UNKNOWN = -1
"""The target of a case whose class or mask is not known; losses and metrics leave such cases out."""


class _Question(Value):
    """What all kinds share: a name, which is that of the head, and how much the task's loss counts in the sum."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "cls"
    """What the task, its head and its column of labels are called."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor on its loss where a model has several tasks."""

    @model_serializer(mode="wrap")
    def _as_ever(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is as it was before there were kinds and weights, so that digests of studies stay."""
        return {k: v for k, v in handler(self).items() if (k, v) not in (("kind", "multiclass"), ("weight", 1.0))}


class Task(_Question):
    """Which one of two or more classes, in the order of the logits."""

    kind: Literal["multiclass"] = "multiclass"
    classes: tuple[str, ...] = Field(min_length=2)
    """Their names, in the order of the logits; each as the labels say it."""

    @field_validator("classes", mode="before")
    @classmethod
    def _words(cls, classes: Any) -> Any:
        """Numbers, and true and false, are words here, as a person who writes `classes: [0, 1]` means them."""
        return [_word(name) for name in classes] if isinstance(classes, list | tuple) else classes

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError("class names must differ")
        if not all(0 < len(name) <= 128 and name.isprintable() for name in classes):
            raise ValueError("class names must have 1 to 128 characters, all of them printable")
        return classes

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a case."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """What people read of the answers: the classes."""
        return self.classes


class Multilabel(_Question):
    """Several labels, each yes, no or not known; a case may have any of them together."""

    kind: Literal["multilabel"]
    labels: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_ -]{1,64}$")], ...], Field(min_length=1)]
    """Their names, in the order of the logits."""

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("label names must differ")
        return labels

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a case."""
        return len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """What people read of the answers: the labels."""
        return self.labels


class Regression(_Question):
    """A value in a unit, such as a size in mm.

    The head learns (value - mean) / std: `mean` and `std` are declared, in the unit, since statistics of the sites'
    own values would be one more thing that leaves them. They need only be about right.
    """

    kind: Literal["regression"]
    unit: Annotated[str, Field(pattern=r"^[^\s,;]{1,16}$")]
    """What the value is counted in, such as `mm`; figures are shown in it."""
    mean: float
    std: Annotated[float, Field(gt=0)]

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a case."""
        return 1

    @property
    def names(self) -> tuple[str, ...]:
        """What people read of the answers: the unit."""
        return (self.unit,)

    @property
    def largest_error(self) -> float:
        """Errors above this count as this where a figure must be bounded to be noised, in the unit."""
        return 4 * self.std


class Segmentation(_Question):
    """Which pixels lie inside a finding: a mask of the image."""

    kind: Literal["segmentation"]

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a pixel."""
        return 1

    @property
    def names(self) -> tuple[str, ...]:
        """What people read of the answers: a pixel is "inside" or not."""
        return ("inside",)


def _word(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _kind(value: Any) -> str:
    found = value.get("kind", "multiclass") if isinstance(value, dict) else getattr(value, "kind", "multiclass")
    return str(found)


AnyTask = Annotated[
    Annotated[Task, Tag("multiclass")]
    | Annotated[Multilabel, Tag("multilabel")]
    | Annotated[Regression, Tag("regression")]
    | Annotated[Segmentation, Tag("segmentation")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="kind must be multiclass, multilabel, regression or segmentation",
    ),
]
"""A task of any kind; without `kind` it is multiclass."""


def linear_heads(tasks: Iterable[AnyTask]) -> dict[str, int]:
    """Outputs of the linear heads by task name; for a classification its classes."""
    return {task.name: task.outputs for task in tasks if not isinstance(task, Segmentation)}


def mask_heads(tasks: Iterable[AnyTask]) -> tuple[str, ...]:
    """Names of the tasks that ask for a mask."""
    return tuple(task.name for task in tasks if isinstance(task, Segmentation))
