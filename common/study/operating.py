"""From which score on a case counts as positive: the rule that a study states. A value."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_serializer, model_validator

from fedgraft.common.base.value import Value


class OperatingRule(Value):
    """How the operating point is chosen on the sites' validation cases: by Youden's index, or for a `sensitivity`.

    In a file `youden`, or `{sensitivity: 0.9}`: the highest threshold that finds at least this share of the positives.
    """

    sensitivity: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {} if value == "youden" else value

    @model_serializer
    def _to_name(self) -> Any:
        return "youden" if self.sensitivity is None else {"sensitivity": self.sensitivity}

    @property
    def words(self) -> str:
        """The rule in words."""
        return "Youden's index" if self.sensitivity is None else f"a sensitivity of {self.sensitivity:g}"
