"""One site of a real run lies in its replies: that may cost it its round, and nobody else anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedgraft.common.base.errors import ENDS
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Update
from fedgraft.server.rounds.app import app as server_app
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.simulations.audit.checks import NOBODY
from fedgraft.simulations.audit.home.hospital import PRIVATE, Hospital, home_study
from fedgraft.simulations.engines.grids import InProcessGrid

_COLUMNS, _PATIENTS = 4, 40
_HONEST, _LIAR, _RUDE = "honest", "liar", "rude"

Lie = Callable[[RecordDict], RecordDict]
"""Makes another reply out of an honest one."""


def lies_in_replies(folder: Path) -> Iterator[str]:
    """Three sites, of which one lies in every round but the first, and one in its greeting."""
    lies: list[tuple[str, Lie]] = list(_LIES.items())
    study = home_study(_COLUMNS, PRIVATE | {"rounds": len(lies) + 1}, rounds={"min_sites": 1, "quorum": 0.1})
    sites = [Hospital(folder / name, study, range(_PATIENTS), name=name) for name in (_HONEST, _LIAR, _RUDE)]
    run = RunFolder(folder / "run")
    run.write_study(study)
    lied: dict[tuple[int, int], Lie] = {(4, 0): _weight} | {(3, at): lie for at, (_, lie) in enumerate(lies, start=2)}
    grid = _Lying([site.home / "site.json" for site in sites], lied)
    try:
        server_app(
            grid, Context(1, 1, {}, RecordDict(), {"run": str(run.path), "engine": "inprocess", "synthetic": True})
        )
    except ENDS:
        raise
    except BaseException as error:  # whatever it is: a run that ends by what one site says is what is looked for
        yield f"one site's words ended the run: {type(error).__name__}"
        return
    finally:
        grid.close()
    rows = run.history()
    if not rows or set(rows[0]["sites_aggregated"]) != {_HONEST, _LIAR}:
        yield f"{_RUDE} was let in with a greeting that cannot be read" if rows and _RUDE in str(rows[0]) else NOBODY
        return
    for (words, _), row in zip(lies, rows[1:], strict=False):
        if row["sites_aggregated"] != [_HONEST]:
            yield f"{words} of one site: {', '.join(row['sites_aggregated']) or 'nobody'} counted in that round"
    if not (run.path / "result.json").is_file():
        yield "the run did not come to its end"


class _Lying(InProcessGrid):
    """Sites of which some replies are changed on their way: `lies` by node and exchange, a greeting's being 0."""

    def __init__(self, configs: list[Path], lies: Mapping[tuple[int, int], Lie]) -> None:
        super().__init__(configs)
        self._lies = lies

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The next node's reply, or what it says instead."""
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            about = (reply.metadata.src_node_id, int(reply.metadata.group_id or 0))
            if about in self._lies and reply.has_content():
                reply.content = self._lies[about](reply.content)
        return replies


def _said(**changes: str) -> Lie:
    """The reply with other JSON at some keys, which need not be JSON that any library writes."""

    def lie(records: RecordDict) -> RecordDict:
        words = records["words"]
        assert isinstance(words, ConfigRecord)
        told = json.loads(str(words["json"])) | dict.fromkeys(changes, "\u0007")
        text = json.dumps(told)
        for key, raw in changes.items():
            text = text.replace(f'"{key}": "\\u0007"', f'"{key}": {raw}')
        return RecordDict({**records, "words": ConfigRecord({"json": text})})

    return lie


def _weight(records: RecordDict) -> RecordDict:
    """A greeting, or a reply, with a count beyond all floats."""
    return _said(cases='{"train":1' + "0" * 400 + "}")(records)


def _shape(text: str) -> Lie:
    """A list of one array of this shape, and no bytes of it."""

    def lie(records: RecordDict) -> RecordDict:
        head = b'[["a","float32",' + text.encode() + b"]]"
        data = len(head).to_bytes(4, "little") + head + bytes(-(4 + len(head)) % 8)
        return RecordDict(
            {**records, "tensors": ArrayRecord({"x": Array("uint8", (len(data),), "fedgraft.bundle", data)})}
        )

    return lie


def _update(**changes: Callable[[Update], Any]) -> Lie:
    """An update that is what it should be but for some fields."""

    def lie(records: RecordDict) -> RecordDict:
        told = wire.unpack_reply(records)
        assert isinstance(told, Update)
        return wire.pack_reply(replace(told, **{name: change(told) for name, change in changes.items()}))

    return lie


def _filled(value: float) -> Callable[[Update], dict[str, np.ndarray]]:
    return lambda told: {key: np.full_like(array, value) for key, array in told.tensors.items()}


_LIES: dict[str, Lie] = {
    "a shape of 2**70": _shape(f"[0,{2**70}]"),
    "a shape of a hundred dimensions": _shape("[0" + ",1" * 100 + "]"),
    "a weight of 10**400": _said(weights='{"*":1' + "0" * 400 + "}"),
    "an exchange of 10**400": _said(exchange="1" + "0" * 400),
    "a loss that is no number": _said(train='{"loss":NaN}'),
    "words that stand too deep": _said(train="[" * 100_000),
    "a name that terminals obey": _said(train='{"\\u001b[2J":1}'),
    "entries that are no numbers": _update(tensors=_filled(float("nan"))),
    "entries beyond all others": _update(tensors=_filled(1e30)),
    "more cases than the site has": _update(weights=lambda told: dict.fromkeys(told.weights, 1e6)),
    "another exchange's number": _update(exchange=lambda told: told.exchange + 1),
}
