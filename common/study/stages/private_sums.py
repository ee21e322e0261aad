"""What a stage asks of the noise on its sums."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedgraft.common.base.value import Value


class PrivateSums(Value):
    """Sums leave with Gaussian noise, once: each unit gives one row, its mean features, of norm at most `max_norm`.

    The noise has deviation `noise_multiplier` times what one unit can change (see `dp_statistics` at the site). Give
    either `noise_multiplier` or the `epsilon` that it may cost. Features that are usually longer than `max_norm` count
    by their direction alone.
    """

    noise_multiplier: Annotated[float, Field(gt=0)] | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None
    max_norm: Annotated[float, Field(gt=0)] = 1.0
    unit: Literal["patient", "image"] = "patient"
    """Whose presence is hidden."""

    @model_validator(mode="after")
    def _one_measure(self) -> PrivateSums:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError("give either noise_multiplier or epsilon")
        return self

    @property
    def sample_rate(self) -> float:
        """1: every unit is in the sums, so sampling gives no amplification."""
        return 1.0
