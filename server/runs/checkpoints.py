"""The last two points from which a run can go on, each with digests of all that it rests on.

What a disk or a person has damaged is not believed: the point before is taken in its place, whose round is then
repeated. If that is damaged too, the run cannot be continued, and says what is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.base.disk import read_bytes
from fedgraft.common.base.errors import InputError, ResumeError
from fedgraft.common.base.files import is_there, make_folder, read_sealed, sealed, write_json
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.server.runs.snapshots import Snapshots

_NEWEST, _BEFORE = "state.json", "before.json"
_MEMORY = "memory of the aggregation:"
_ANEW = "Restore it from a backup, or begin a new run with another --out."


@dataclass(frozen=True)
class Checkpoint:
    """The run after `exchange`: the aggregated state, and how long the history was then, in bytes.

    `memory` is what a stage's aggregation keeps from round to round; `totals` are running sums for the result (bytes,
    seconds, refusals).
    """

    exchange: int
    state: dict[str, np.ndarray]
    memory: dict[str, np.ndarray]
    history_bytes: int
    totals: dict[str, Any]


class Checkpoints:
    """Those of one run, in the folder `checkpoint` of `run`; the history that they rest on lies beside it."""

    def __init__(self, run: Path) -> None:
        self._folder = run / "checkpoint"
        self._history = run / "history.jsonl"
        self._snapshots = Snapshots(self._folder)

    def save(self, exchange: int, state: Arrays, memory: Arrays, totals: Mapping[str, Any]) -> None:
        """Make the run resumable from after `exchange`: first the tensors, then the file that names them."""
        make_folder(self._folder)
        arrays = dict(state) | {f"{_MEMORY}{key}": array for key, array in memory.items()}
        files = self._snapshots.write(f"{exchange:06d}.safetensors", arrays)
        history = read_bytes(self._history) if self._history.exists() else b""
        facts = {
            "exchange": exchange,
            "tensors": files,
            "history_bytes": len(history),
            "history_sha256": hashlib.sha256(history).hexdigest(),
            "totals": dict(totals),
        }
        newest, kept = self._folder / _NEWEST, set(files)
        if is_there(newest):
            newest.replace(self._folder / _BEFORE)
            kept |= self._files_of(_BEFORE)
        write_json(newest, sealed(facts))
        self._snapshots.forget_all_but(kept)

    def load(self, tell: Callable[[str], object]) -> Checkpoint | None:
        """The newest that is whole, with the history cut back to it; None if the run has not got that far.

        `tell` is called with what whoever continues the run should know. ResumeError if none is whole.
        """
        there = [name for name in (_NEWEST, _BEFORE) if is_there(self._folder / name)]
        if not there:
            self._begin_again(tell)
            return None
        faults = []
        for name in there:
            try:
                found = self._read(name)
            except InputError as error:
                faults.append(str(error))
                continue
            for fault in faults:
                tell(f"{fault} The run goes on from the checkpoint before, after exchange {found.exchange}.")
            return found
        raise ResumeError(" ".join(faults), fix=_ANEW)

    def reached(self) -> int:
        """After which exchange the newest is; 0 if there is none."""
        for name in (_NEWEST, _BEFORE):
            if is_there(self._folder / name):
                try:
                    return int(self._facts(name)["exchange"])
                except InputError:
                    continue
        return 0

    def _begin_again(self, tell: Callable[[str], object]) -> None:
        """Without a checkpoint a run begins anew; but one that had got further has lost it."""
        rows = read_bytes(self._history).count(b"\n") if self._history.is_file() else 0
        # The first may stand there before the first checkpoint does.
        if rows > 1 and any(self._folder.glob("*.safetensors")):
            raise ResumeError(f"{self._folder / _NEWEST}: is gone, after {rows} exchanges.", fix=_ANEW)
        if rows > 1:
            tell(f"{self._folder}: there is no checkpoint, though {rows} exchanges were done. The run begins anew.")
        self._history.unlink(missing_ok=True)

    def _read(self, name: str) -> Checkpoint:
        facts = self._facts(name)
        size = int(facts["history_bytes"])
        history = read_bytes(self._history) if is_there(self._history) else b""
        if len(history) < size or hashlib.sha256(history[:size]).hexdigest() != facts["history_sha256"]:
            raise InputError(f"{self._history}: is shorter than it was, or was changed.")
        found = self._snapshots.read(facts["tensors"])
        if is_there(self._history):
            with self._history.open("r+b") as file:
                file.truncate(size)
        state = {key: array for key, array in found.items() if not key.startswith(_MEMORY)}
        memory = {key.removeprefix(_MEMORY): array for key, array in found.items() if key.startswith(_MEMORY)}
        return Checkpoint(int(facts["exchange"]), state, memory, size, facts["totals"])

    def _facts(self, name: str) -> dict[str, Any]:
        return read_sealed(self._folder / name)

    def _files_of(self, name: str) -> set[str]:
        try:
            return set(self._facts(name)["tensors"])
        except InputError:
            return set()
