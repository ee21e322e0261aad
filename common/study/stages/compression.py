"""In how many bytes the change of a visit goes back to the coordinator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedgraft.common.base.value import Value


class Compression(Value):
    """How the change of what a stage shares is rounded before it leaves a site. In a file: a kind, or these keys.

    What rounding leaves out stays at the site and is added to its next change (error feedback; Seide et al. 2014,
    Karimireddy et al. 2019). Small entries and running statistics travel whole. Rounding comes after the noise of
    private work, and costs no privacy.
    """

    kind: Literal["none", "bf16", "int8", "topk"] = "none"
    """`bf16`: 2 bytes a number. `int8`: whole numbers from -127 to 127 and a scale for each 256, about 1 byte. `topk`:
    of each entry the numbers that changed most, 6 bytes for each; all others stay as they were."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """`topk`: how many of an entry's numbers travel."""

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


WHOLE = Compression()
"""Entries as they are."""
