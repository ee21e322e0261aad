"""A run's folder on disk: the contract with whoever reads a run, and what it takes to resume one."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from fedgraft.common.agreement.agreement import AGREEMENT, SupplyAgreement, read_agreement
from fedgraft.common.base.disk import naming, read_bytes, understood, why_no_file
from fedgraft.common.base.errors import InputError, ResumeError, RunError
from fedgraft.common.base.files import is_there, open_private, read_json, write_atomic, write_json
from fedgraft.common.base.locking import try_lock
from fedgraft.common.config.config_files import read_mapping
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.study import Study, parse_study
from fedgraft.server.runs.checkpoints import Checkpoint, Checkpoints

REASON = "fedgraft: "
"""How a deployed run's own reason for its end begins in Flower's words: a run that was killed has none."""

NOTICE = "notice"
"""The event by which whoever watches the run is told something in words."""

WAITING = "waiting"
"""The event of a round that is repeated once some sites are back."""

JOINED = "joined"
"""The event of a site that takes part from now on, though it was not there when the run began."""

HELD = "held"
"""The event of a site that holds its answer until its people have let it go."""

_TAKE_S = 3.0
"""Whoever only looks whether a folder is taken holds it for a moment."""

_TAKEN: list[IO[str]] = []
"""Locks that are held as long as the process lives."""

_TELL_S = 0.1
"""Whoever watches a run learns of a reply this much later, at most, if another one follows."""


class RunFolder:
    """Reads and writes one run. Every file is replaced as a whole, or appended to by whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._history = path / "history.jsonl"
        self._events = path / "events.jsonl"
        self._deployment = path / "deployment.json"
        self.checkpoints = Checkpoints(path)
        self._watched: IO[bytes] | None = None
        self._told = 0.0

    def take(self) -> None:
        """Keep the folder to this process for the rest of its life; RunError if somebody else has it."""
        _TAKEN.append(self._lock())

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder to whoever is in this block; RunError if somebody else has it."""
        with self._lock():
            yield

    def _lock(self) -> IO[str]:
        lock = open_private(self.path / "lock", "a")
        ends = time.monotonic() + _TAKE_S
        while not try_lock(lock):
            if time.monotonic() > ends:
                lock.close()
                raise self._taken()
            time.sleep(0.1)
        return lock

    def demand_free(self, patience_s: float) -> None:
        """RunError if a process is at work on the run, and does not end within so many seconds."""
        ends = time.monotonic() + patience_s
        with open_private(self.path / "lock", "a") as lock:
            while not try_lock(lock, shared=True):
                if time.monotonic() > ends:
                    raise self._taken()
                time.sleep(0.1)

    def is_taken(self) -> bool:
        """Whether a process is at work on the run."""
        with open_private(self.path / "lock", "a") as lock:
            return not try_lock(lock, shared=True)

    def _taken(self) -> RunError:
        return RunError(f"{self.path}: another process is at work on this run.", fix="Wait for it, or end it.")

    def study(self) -> Study:
        """The study that this run is of; ResumeError if the folder has none."""
        source = self.path / "study.yaml"
        if not source.is_file():
            raise ResumeError(f"{self.path}: is no run's folder: {why_no_file(source)}.")
        return parse_study(read_mapping(source), str(source))

    def demand_study(self, digest: str, source: str) -> None:
        """ResumeError unless `study.yaml` is the study with this digest, which `source` says that sites approved."""
        if (now := self.study().digest) != digest:
            raise ResumeError(
                f"{self.path / 'study.yaml'}: is not the study that this run was begun with: its digest was "
                f"{digest} by {source}, and is {now} now.",
                fix="Undo the change in the one or the other, or begin a new run with another --out.",
            )

    def start_deployment(self, study: Study, sites: Collection[str]) -> None:
        """Say that this run of a study is over real sites, and which should take part."""
        self.write_study(study)
        write_json(self._deployment, {"started": [], "sites": sorted(sites), "study": study.digest})

    def demand_deployment(self) -> None:
        """ResumeError unless this is a deployed run, and still of the study that it was begun with."""
        if not is_there(self._deployment):
            fix = "Give the folder that `fedgraft server run` wrote."
            raise ResumeError(f"{self.path} is no deployed run: there is no {self._deployment.name}.", fix=fix)
        self.demand_study(str(self._deployed()["study"]), self._deployment.name)

    def sites(self) -> tuple[str, ...]:
        """The sites that a deployed run is over: those of the consortium when it was begun."""
        return tuple(map(str, self._deployed()["sites"]))

    def found_there(self, sites: Collection[str]) -> None:
        """Note which of the run's sites were there when somebody last had it begin or go on."""
        write_json(self._deployment, self._deployed() | {"there": sorted(sites)})

    def started_as(self, number: int) -> None:
        """Note under which of Flower's numbers the run was started, once more."""
        facts = self._deployed()
        write_json(self._deployment, facts | {"started": [*facts["started"], str(number)]})

    def _deployed(self) -> dict[str, Any]:
        match read_json(self._deployment):
            case {"started": list(), "sites": list(), "study": str()} as facts:
                return dict(facts)
        raise ResumeError(f"{self._deployment}: does not say which sites the run is over.", fix="Begin a new run.")

    def pin(self, agreement: SupplyAgreement) -> None:
        """Pin the run to what sites answered before."""
        self.write(AGREEMENT, agreement.content())

    def agreement(self) -> SupplyAgreement | None:
        """What the run is pinned to; None if to nothing. InputError if it was changed."""
        path = self.path / AGREEMENT
        return read_agreement(path) if is_there(path) else None

    def write_study(self, study: Study) -> None:
        """Write `study.yaml`, all defaults written out."""
        write_atomic(self.path / "study.yaml", study.to_yaml().encode())

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `content` as the JSON file `name`."""
        write_json(self.path / name, content)

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Add a line to `history.jsonl`: one exchange, as JSON without NaN."""
        with naming(self._history), open_private(self._history, "ab") as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            file.flush()

    def event(self, kind: str, **facts: object) -> None:
        """Tell whoever watches the run what just happened."""
        if self._watched is None:
            self._watched = _after_whole_lines(self._events)
        now = time.time()
        with naming(self._events):
            self._watched.write(json.dumps({"time": round(now, 3), "event": kind, **facts}).encode() + b"\n")
            if kind != "reply" or now - self._told > _TELL_S:
                self._watched.flush()
                self._told = now

    def held_since(self, site: str) -> float | None:
        """When a site first held its answer in this run, in seconds since 1970; None if it never did."""
        for line in self._events.read_bytes().split(b"\n")[:-1] if self._events.exists() else []:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # as below
                if b'"event": "held"' in line and site in (found := json.loads(line))["sites"]:
                    return float(found["time"])
        return None

    def had(self) -> set[str]:
        """The sites that a run waits for when it begins, and again each time that it begins again.

        Those that were there when somebody last had it begin or go on, and those that took part before it was
        interrupted; none in a simulation that was never begun.
        """
        there = set(map(str, self._deployed().get("there", ()))) if is_there(self._deployment) else set()
        return there | self._took_part()

    def _took_part(self) -> set[str]:
        """Those that greeted when the run was last begun, and those that joined it since."""
        lines = self._events.read_bytes().split(b"\n")[:-1] if self._events.exists() else []
        joined = set[str]()
        for line in reversed(lines):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # what a crash damaged stops no run
                if b'"event": "joined"' in line:
                    joined |= set(json.loads(line)["sites"])
                elif b'"event": "greeted"' in line and (sites := json.loads(line)["sites"]):
                    return joined | set(sites)
        return joined

    def save_checkpoint(self, exchange: int, state: Arrays, memory: Arrays, totals: Mapping[str, Any]) -> None:
        """Make the run resumable from after `exchange`; `memory` and `totals` as in a `Checkpoint`."""
        self.checkpoints.save(exchange, state, memory, totals)

    def load_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint, with the history cut back to it; None if there is none. ResumeError if all are lost."""
        return self.checkpoints.load(lambda text: self.event(NOTICE, text=text))

    def history(self) -> list[dict[str, Any]]:
        """All exchanges that are done. InputError names the file, and the line that is damaged."""
        rows = []
        for number, line in enumerate(read_bytes(self._history).splitlines(), start=1):
            with understood(self._history, f"a history in line {number}"):
                rows.append(dict(json.loads(line)))
        return rows


def run_of(note: Path) -> str:
    """The folder of a run, by what the server has noted of it; InputError if that is damaged."""
    match read_json(note):
        case {"run": str(folder)}:
            return folder
    raise InputError(f"{note}: does not say where its run is.", fix="Remove it: the run's own folder has the rest.")


def _after_whole_lines(path: Path) -> IO[bytes]:
    """The file, open for more lines, without what a full disk or a kill has left of half a line."""
    whole = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    if whole[2]:
        with path.open("r+b") as file:
            file.truncate(len(whole[0]) + len(whole[1]))
    return open_private(path, "ab")
