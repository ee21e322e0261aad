"""What studies, plans and policies are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value that knows exactly its own keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
