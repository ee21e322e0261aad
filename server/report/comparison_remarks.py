"""What a comparison's table does not say by itself: shortcuts that do as well, unequal work, and seeds that lack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedgraft.server.report.history import mapping, number, sequence, text

Row = dict[str, Any]
_ENOUGH = ("better", "worse", "as good")
"""How verdicts begin that more seeds would not change."""


def remarks(question: Row) -> Iterator[str]:
    """One line for each thing that is to be known of a question, as `compare.json` has it."""
    rows = [mapping(row) for row in sequence(question.get("rows"))]
    yield from _controls(rows, "below" if question.get("better") == "lower" else "above")
    yield from _work(question)
    yield from map(text, sequence(question.get("losses_left")))
    yield from _seeds(rows, number(question.get("margin")) or 0.0, text(question.get("against")))


def _controls(rows: list[Row], where: str) -> Iterator[str]:
    """Arms whose interval is not on the right side of the best control's: `where` better figures are."""
    for row in rows:
        control = mapping(row.get("control"))
        if control and control.get("clear") is not True:
            low, high, value = (number(control.get(key)) or 0.0 for key in ("low", "high", "value"))
            yield (
                f"{_name(row)} is not clearly {where} the control {text(control.get('control'))}: "
                f"{value:+.3f} [{low:+.3f}, {high:+.3f}]. What it has learnt may be a shortcut."
            )


def _work(question: Row) -> Iterator[str]:
    """Arms that train by gradient and not as much as the one that they are held against."""
    against = text(question.get("against"))
    for one in map(mapping, sequence(question.get("arms"))):
        work = mapping(one.get("work"))
        times = number(work.get("times"))
        if work and one.get("arm") != against and times != 0 and (times is None or abs(times - 1) > 0.005):
            yield f"{text(one.get('arm'))}: not the gradient work of {against}: {text(work.get('words'))}."


def _seeds(rows: list[Row], margin: float, against: str) -> Iterator[str]:
    """How many seeds the widest of the undecided differences would take."""
    needed = {}
    for row in rows:
        difference = mapping(row.get("difference"))
        seeds = number(difference.get("seeds_to_decide"))
        if seeds is not None and not text(difference.get("verdict")).startswith(_ENOUGH):
            needed[_name(row)] = int(seeds)
    if needed:
        listed = ", ".join(f"{name} {seeds}" for name, seeds in needed.items())
        yield f"Seeds that would find a difference of {margin:g} to {against} four times out of five, about: {listed}."


def _name(row: Row) -> str:
    cases = number(row.get("cases"))
    return text(row.get("arm")) + (f" at {int(cases)}" if cases else "")
