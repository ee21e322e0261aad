"""A study that would not end in anybody's lifetime is questioned before it begins."""

from __future__ import annotations

from collections.abc import Iterator

from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import Study

_EXCHANGES, _PASSES, _STEPS = 100_000, 1_000_000, 100_000_000
"""The most that a study may have of each."""

_EXCHANGE_S, _PASS_S, _STEP_S = 1.0, 0.5, 0.01
"""What one takes on a small model and a fast machine, in seconds."""


def check_length(study: Study) -> Iterator[str]:
    """Stages that are longer than can be meant, each with a low estimate of how long they take."""
    for index, stage in enumerate(study.plan):
        where = f"plan.{index} ({stage.name})"
        if stage.rounds > _EXCHANGES:
            yield _questioned(f"{where}.rounds", "rounds", stage.rounds, _EXCHANGES, _EXCHANGE_S)
        elif isinstance(stage.local, Gradient):
            passes, steps = stage.rounds * (stage.local.epochs or 0), stage.rounds * (stage.local.steps or 0)
            if passes > _PASSES:
                yield _questioned(f"{where}.local.epochs", "epochs in all rounds", passes, _PASSES, _PASS_S)
            if steps > _STEPS:
                yield _questioned(f"{where}.local.steps", "steps in all rounds", steps, _STEPS, _STEP_S)


def _questioned(where: str, what: str, number: int, most: int, seconds: float) -> str:
    return (
        f"{where}: are {number:,} {what} meant? They would take {_long(number * seconds)} at the very least; "
        f"the most is {most:,}"
    )


def _long(seconds: float) -> str:
    days = seconds / 86400
    return f"{days:,.0f} days" if days < 1000 else f"{days / 365.25:,.0f} years"
