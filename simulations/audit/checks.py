"""Checks that play real parts below a folder of their own, and say in words what should not have happened."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from fedgraft.client.attacks.measurement import Measurement
from fedgraft.simulations.audit.findings import AttackAttempt

Check = Callable[[Path], Iterator[str]]
"""Plays below a folder that is there, and says in words what should not have happened."""

Row = tuple[str, str, Check]
"""A check with its name, and the claim that it puts to the test."""

NOBODY = "nobody takes part, so that nothing was tried"


def attempts(stage: str, rows: Sequence[Row]) -> list[AttackAttempt]:
    """These checks, yet to be carried out; `stage` is the name under which they are found."""
    return [AttackAttempt(stage, name, claim, partial(_tried, check)) for name, claim, check in rows]


def _tried(check: Check) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as folder:
        found = list(check(Path(folder)))
    return Measurement(float(len(found)), 0.0, "; ".join(found) or "nothing of it came true")
