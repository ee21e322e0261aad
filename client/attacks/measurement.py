"""What an attack measured, as a value: a figure and the bound that it must keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sense = Literal["at most", "at least"]


@dataclass(frozen=True)
class Measurement:
    """A figure, the bound on it, and in plain words what the figure is."""

    value: float
    bound: float
    words: str
    sense: Sense = "at most"

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; never by what is no number."""
        return self.value <= self.bound if self.sense == "at most" else self.value >= self.bound
