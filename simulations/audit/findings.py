"""What an attack found, as a value: a claim that was put to the test, and whether it held."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedgraft.client.attacks.measurement import Measurement, Sense

_LARGEST = 1e9


@dataclass(frozen=True)
class Finding:
    """One claim put to the test. `passed` is None for what the study does not ask for, and so was not tested.

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


@dataclass(frozen=True)
class AttackAttempt:
    """An attack that is yet to be carried out. Without `measure` there is nothing to try, and `words` say why."""

    stage: str
    name: str
    claim: str
    measure: Callable[[], Measurement] | None
    words: str = ""
    accepted: bool = False

    def find(self) -> Finding:
        """Carry it out and judge what was measured."""
        if self.measure is None:
            return Finding(self.stage, self.name, self.claim, None, None, "at most", None, 0.0, self.words)
        start = time.perf_counter()
        found = self.measure()
        return Finding(
            self.stage,
            self.name,
            self.claim,
            found.value if math.isfinite(found.value) else math.copysign(_LARGEST, found.value),
            found.bound,
            found.sense,
            found.holds,
            round(time.perf_counter() - start, 3),
            found.words,
            self.accepted,
        )
