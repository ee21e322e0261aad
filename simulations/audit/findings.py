"""What an attack found, as a value: a claim, what was measured, and the bound that it must keep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Sense = Literal["at most", "at least"]
_LARGEST = 1e9


@dataclass(frozen=True)
class Measured:
    """A figure, the bound on it, and in plain words what the figure is."""

    value: float
    bound: float
    words: str
    sense: Sense = "at most"

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; never by what is no number."""
        return self.value <= self.bound if self.sense == "at most" else self.value >= self.bound


@dataclass(frozen=True)
class Finding:
    """One claim put to the test. `passed` is None for what this version has not got, and so could not test.

    `accepted` marks a claim that fails, and of which the person who asked said beforehand that it may.
    """

    stage: str
    name: str
    claim: str
    measured: float | None
    bound: float | None
    sense: Sense
    passed: bool | None
    seconds: float
    words: str
    accepted: bool = False

    @property
    def fails(self) -> bool:
        """Whether this alone makes the audit fail."""
        return self.passed is False and not self.accepted


def find(stage: str, name: str, claim: str, measure: Callable[[], Measured]) -> Finding:
    """Carry out one measurement and judge it."""
    start = time.perf_counter()
    found = measure()
    seconds = time.perf_counter() - start
    value = found.value if math.isfinite(found.value) else math.copysign(_LARGEST, found.value)
    return Finding(stage, name, claim, value, found.bound, found.sense, found.holds, round(seconds, 3), found.words)
