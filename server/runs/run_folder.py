"""A run's folder on disk: the contract with whoever reads a run, and what it takes to resume one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedgraft.common.base.config_files import read_mapping
from fedgraft.common.base.errors import ResumeError, RunError
from fedgraft.common.base.files import make_folder, open_private, read_json, write_atomic, write_json
from fedgraft.common.base.locking import try_lock
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.study import Study, parse_study
from fedgraft.server.runs.snapshots import Snapshots

REASON = "fedgraft: "
"""How a deployed run's own reason for its end begins in Flower's words: a run that was killed has none."""

_TAKE_S = 3.0
"""Whoever only looks whether a folder is taken holds it for a moment."""

_TAKEN: list[IO[str]] = []
"""Locks that are held as long as the process lives."""

_MEMORY = "memory of the aggregation:"
_TELL_S = 0.1
"""Whoever watches a run learns of a reply this much later, at most, if another one follows."""


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


class RunFolder:
    """Reads and writes one run. Every file is replaced as a whole, or appended to by whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._history = path / "history.jsonl"
        self._events = path / "events.jsonl"
        self._snapshots = Snapshots(path / "checkpoint")
        self._watched: IO[bytes] | None = None
        self._told = 0.0

    def take(self) -> None:
        """Keep the folder to this process for the rest of its life; RunError if another one has it."""
        lock = open_private(self.path / "lock", "a")
        ends = time.monotonic() + _TAKE_S
        while not try_lock(lock):
            if time.monotonic() > ends:
                raise RunError(f"{self.path}: another process is at work on this run.")
            time.sleep(0.1)
        _TAKEN.append(lock)

    def is_taken(self) -> bool:
        """Whether a process is at work on the run."""
        with open_private(self.path / "lock", "a") as lock:
            return not try_lock(lock, shared=True)

    def study(self) -> Study:
        """The study that this run is of; ResumeError if the folder has none."""
        source = self.path / "study.yaml"
        if not source.is_file():
            raise ResumeError(f"{self.path}: is no run's folder: there is no study.yaml.")
        return parse_study(read_mapping(source), str(source))

    def write_study(self, study: Study) -> None:
        """Write `study.yaml`, all defaults written out."""
        write_atomic(self.path / "study.yaml", study.to_yaml().encode())

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `content` as the JSON file `name`."""
        write_json(self.path / name, content)

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Add a line to `history.jsonl`: one exchange, as JSON without NaN."""
        with open_private(self._history, "ab") as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            file.flush()

    def event(self, kind: str, **facts: object) -> None:
        """Tell whoever watches the run what just happened."""
        if self._watched is None:
            self._watched = _after_whole_lines(self._events)
        now = time.time()
        self._watched.write(json.dumps({"time": round(now, 3), "event": kind, **facts}).encode() + b"\n")
        if kind != "reply" or now - self._told > _TELL_S:
            self._watched.flush()
            self._told = now

    def greeted(self) -> set[str]:
        """The sites that took part when the run was last begun; none if it never was."""
        if not self._events.exists():
            return set()
        lines = self._events.read_bytes().split(b"\n")[:-1]
        found = (json.loads(line) for line in reversed(lines) if b'"event": "greeted"' in line)
        return set(next((event["sites"] for event in found if event["sites"]), ()))

    def save_checkpoint(self, exchange: int, state: Arrays, memory: Arrays, totals: Mapping[str, Any]) -> None:
        """Make the run resumable from after `exchange`: first the tensors, then the file that names them."""
        folder = self.path / "checkpoint"
        make_folder(folder)
        arrays = dict(state) | {f"{_MEMORY}{key}": array for key, array in memory.items()}
        names = self._snapshots.write(f"{exchange:06d}.safetensors", arrays)
        size = self._history.stat().st_size if self._history.exists() else 0
        facts = {"exchange": exchange, "tensors": names, "history_bytes": size, "totals": dict(totals)}
        write_json(folder / "state.json", facts)
        self._snapshots.forget_all_but(names)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, with the history cut back to it; None if there is none."""
        source = self.path / "checkpoint" / "state.json"
        if not source.is_file():
            if self._history.exists():
                self._history.unlink()
            return None
        try:
            facts = read_json(source)
            names = facts["tensors"]
            found = self._snapshots.read([names] if isinstance(names, str) else names)  # one name: an older version's
            state = {key: array for key, array in found.items() if not key.startswith(_MEMORY)}
            memory = {key.removeprefix(_MEMORY): array for key, array in found.items() if key.startswith(_MEMORY)}
            checkpoint = Checkpoint(facts["exchange"], state, memory, facts["history_bytes"], facts["totals"])
        except (KeyError, TypeError, IndexError) as error:
            raise ResumeError(f"{source}: is not a checkpoint: {error}.") from None
        if checkpoint.history_bytes:
            with self._history.open("r+b") as file:
                file.truncate(checkpoint.history_bytes)
        return checkpoint


def _after_whole_lines(path: Path) -> IO[bytes]:
    """The file, open for more lines, without what a full disk or a kill has left of half a line."""
    whole = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    if whole[2]:
        with path.open("r+b") as file:
            file.truncate(len(whole[0]) + len(whole[1]))
    return open_private(path, "ab")
