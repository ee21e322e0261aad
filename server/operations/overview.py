"""What the coordinator sees of a running server: its sites, and the runs with their rounds and refusals."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedgraft.common.base.disk import oldest_first, read_bytes, understood
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import read_json
from fedgraft.common.study.schedule import last_exchange
from fedgraft.common.study.study import Study
from fedgraft.server.operations.control import RunControl
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.runs.run_folder import RunFolder, run_of

_UNKNOWN = "unknown"
"""The state of a run that the server has no record of."""


@dataclass(frozen=True)
class SiteRow:
    """One site. `heard_s` is how long ago it was last heard of, None if never."""

    name: str
    state: str
    heard_s: float | None


@dataclass(frozen=True)
class RunRow:
    """One run. `state` is Flower's word; `status` is running, stopped, failed, completed or incomplete.

    `refusals` counts, by site, its refusals by code; `last` says in what exchange a site last took part. Of a run whose
    folder is `damaged` nothing else is known than its `fault`.
    """

    number: int
    state: str
    status: str
    folder: str
    study: str
    exchange: int = 0
    exchanges: int = 0
    stage: str = ""
    round: int = 0
    refusals: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    last: Mapping[str, int] = field(default_factory=dict)
    fault: str = ""


def sites(home: ServerHome) -> list[SiteRow]:
    """All sites that were ever enrolled, as the running server knows them."""
    with RunControl(home) as control:
        nodes = {node.key: node for node in control.nodes(gone=True)}
    rows, now = [], time.time()
    for name, entry in home.sites().items():
        held = [nodes[key] for key in (entry.node, *(old.node for old in entry.old)) if key in nodes]
        node = next((one for one in held if one.online), held[0] if held else None)
        heard = max((one.heard for one in held), default=0.0)  # a renewed site may not have come with its new key yet
        state = "revoked" if entry.revoked else "online" if node is not None and node.online else "offline"
        rows.append(SiteRow(name, state, round(max(0.0, now - heard), 1) if heard else None))
    return rows


def runs(home: ServerHome) -> list[RunRow]:
    """The runs of this server, the newest first; of a run that was started again, the last start."""
    with RunControl(home) as control:
        states = control.states()
    rows: dict[str, RunRow] = {}
    for path in reversed(oldest_first(home.studies.glob("*.json"))):
        number, folder = int(path.stem), run_of(path)
        if folder not in rows and Path(folder).is_dir():
            state = states.get(number, _UNKNOWN)
            try:
                rows[folder] = _row(number, state, Path(folder))
            except InputError as error:  # one damaged folder hides no other
                rows[folder] = RunRow(number, state, "damaged", folder, Path(folder).name, fault=str(error))
    return list(rows.values())


def running(home: ServerHome) -> dict[int, str]:
    """The folders of all runs that are not over, by Flower's number; "" if it is not known."""
    with RunControl(home) as control:
        numbers = [number for number, state in control.states().items() if not state.startswith("finished")]
    notes = {number: home.studies / f"{number}.json" for number in numbers}
    return {number: run_of(note) if note.is_file() else "" for number, note in notes.items()}


def plain(rows: list[SiteRow] | list[RunRow]) -> list[dict[str, Any]]:
    """Rows as plain values, for JSON."""
    return [asdict(row) for row in rows]


def _row(number: int, state: str, folder: Path) -> RunRow:
    study = RunFolder(folder).study()
    history = _lines(folder / "history.jsonl")
    with understood(folder / "history.jsonl", "a history"):
        return _described(number, state, folder, study, history)


def _described(number: int, state: str, folder: Path, study: Study, history: list[dict[str, Any]]) -> RunRow:
    last: dict[str, Any] = history[-1] if history else {"exchange": 0, "stage": "greeting", "round": 0}
    refusals: dict[str, Counter[str]] = {}
    for row in history:
        for site, code in row["missing"].items():
            refusals.setdefault(site, Counter())[code] += 1
    for event in _lines(folder / "events.jsonl"):
        for site, code in (event.get("absent") or {}).items():
            refusals.setdefault(site, Counter())[code] += 1
    return RunRow(
        number=number,
        state=state,
        status=_status(state, RunFolder(folder)),
        folder=str(folder),
        study=study.name,
        exchange=last["exchange"],
        exchanges=last_exchange(study),
        stage=last["stage"],
        round=last["round"],
        refusals={site: dict(codes) for site, codes in sorted(refusals.items())},
        last={site: row["exchange"] for row in history for site in row["sites_aggregated"]},
    )


def _status(state: str, folder: RunFolder) -> str:
    result = folder.path / "result.json"
    if state in ("finished:completed", _UNKNOWN) and result.is_file():
        with understood(result, "the result of a run"):
            return str(read_json(result).get("status", "completed"))
    if state == _UNKNOWN:  # by a server that began anew
        return "running" if folder.is_taken() else "stopped"
    if not state.startswith("finished"):
        return "running"
    return "stopped" if state == "finished:stopped" else "failed"


def resume_command(home: ServerHome, folder: str | Path) -> str:
    """What to type to continue a run."""
    return f"fedgraft server run --resume {shlex.quote(str(folder))} --home {shlex.quote(str(home.path))}"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that is being written."""
    if not path.is_file():
        return []
    data = read_bytes(path)
    with understood(path, "a list of what happened in a run"):
        return [dict(json.loads(line)) for line in data[: data.rfind(b"\n") + 1].splitlines()]
