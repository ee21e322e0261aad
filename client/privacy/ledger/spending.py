"""What every study has spent, as it stands besides the ledger: with its witness, and in the lines of the egress log.

These say what a ledger must at least hold, and what is assumed if it was restored from a backup and forgot some of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from fedgraft.common.privacy.accountant import Event, Unit, aggregate

Spending = Mapping[str, tuple[Event, ...]]
"""By study its events, equal ones counted together."""


@dataclass(frozen=True)
class Account:
    """The spending of some or all studies, with what their ledger was made with."""

    delta: float
    unit: Unit
    spent: Spending

    def content(self) -> dict[str, Any]:
        """As plain values."""
        spent = {job: [[e.noise_multiplier, e.sample_rate, e.steps] for e in own] for job, own in self.spent.items()}
        return {"delta": self.delta, "unit": self.unit, "spent": spent}

    @classmethod
    def of(cls, content: object) -> Account:
        """From plain values; ValueError if they are none."""
        match content:
            case {"delta": float(delta), "unit": str(unit), "spent": dict(spent)} if unit in get_args(Unit):
                try:
                    events = {
                        str(job): tuple(Event(float(n), float(q), int(s)) for n, q, s in own)
                        for job, own in spent.items()
                    }
                except TypeError:
                    raise ValueError("events of three numbers each") from None
                return cls(delta, "patient" if unit == "patient" else "image", events)
        raise ValueError("delta, unit and spending")


def largest(records: Iterable[Spending]) -> dict[str, tuple[Event, ...]]:
    """For every study and every kind of step the most that any of the records has: no record holds more."""
    most: dict[str, dict[tuple[float, float], int]] = {}
    for record in records:
        for job, events in record.items():
            own = most.setdefault(job, {})
            for event in aggregate(events):
                kind = event.noise_multiplier, event.sample_rate
                own[kind] = max(own.get(kind, 0), event.steps)
    return {job: tuple(Event(*kind, steps) for kind, steps in own.items()) for job, own in most.items()}


def missing(wanted: Spending, known: Spending) -> dict[str, tuple[Event, ...]]:
    """What must be added to `known`, so that it holds `wanted`."""
    found = {}
    for job, events in wanted.items():
        has = {(e.noise_multiplier, e.sample_rate): e.steps for e in aggregate(known.get(job, ()))}
        lacks = [
            Event(e.noise_multiplier, e.sample_rate, e.steps - has.get((e.noise_multiplier, e.sample_rate), 0))
            for e in aggregate(events)
        ]
        if more := tuple(event for event in lacks if event.steps > 0):
            found[job] = more
    return found
