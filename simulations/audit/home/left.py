"""What has left a site, held against its egress log: whatever a message says must stand there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedgraft.client.governance.approval import withdraw
from fedgraft.client.governance.egress import EgressEntry, EgressLog
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Update
from fedgraft.simulations.audit.checks import NOBODY
from fedgraft.simulations.audit.home.hospital import CLOSED, PRIVATE, Hospital, home_study

_COLUMNS, _PATIENTS = 4, 200
_PARTS = frozenset({"words", "tensors", "metrics"})


def all_that_left(folder: Path) -> Iterator[str]:
    """A site greets, works, shows figures, says that it is there, and refuses."""
    policy = CLOSED.model_copy(update={"metrics": "suppressed"})
    site = Hospital(folder / "site", home_study(_COLUMNS, PRIVATE | {"rounds": 1}), range(_PATIENTS), policy)
    site.restart()
    site.greet()
    site.ask(1)
    site.ask(2)
    withdraw(site.home, site.study.digest)
    site.ask(2)
    site.greet()
    site.restart()
    entries = list(EgressLog(site.home / "state").entries())
    if [entry.kind for entry in entries][:3] != ["greeting", "update", "update"] or not entries[2].metrics:
        yield NOBODY if len(entries) == len(site.left) else "a message left that the log does not have"
        return
    for records, entry in zip(site.left, entries, strict=True):
        yield from (f"a {entry.kind} said {what}, which the log does not have" for what in _untold(records, entry))


def _untold(records: Any, entry: EgressEntry) -> Iterator[str]:
    """What a message says and its line in the log does not."""
    yield from sorted(set(records) - _PARTS)
    words = json.loads(str(records["words"]["json"]))
    told = set(_scalars({"words": entry.words, "exchange": entry.exchange}))
    yield from (f"{name} {value!r}" for name, value in _named(words) if value not in told)
    if entry.kind == "update":
        update = wire.unpack_reply(records)
        assert isinstance(update, Update)
        digests = {digest for part in (entry.tensors, entry.metrics) for _, _, digest in part.values()}
        figures = {f"{task}/{key}": array for task, own in update.metrics.items() for key, array in own.items()}
        for name, array in {**update.tensors, **figures}.items():
            if hashlib.sha256(array.tobytes()).hexdigest() not in digests:
                yield name


def _named(words: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values of a message, each with the first of its names; what is not said, or no, is nothing."""
    yield from ((name, value) for name, own in words.items() for value in _scalars(own) if value)


def _scalars(value: Any) -> Iterator[Any]:
    """Keys and values at any depth."""
    if isinstance(value, Mapping):
        yield from value
        yield from (one for own in value.values() for one in _scalars(own))
    elif isinstance(value, list | tuple):
        yield from (one for own in value for one in _scalars(own))
    else:
        yield value
