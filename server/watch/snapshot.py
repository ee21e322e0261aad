"""What a run's folder and the running server say at one moment: plain values, for whoever shows them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedgraft.common.base.disk import understood
from fedgraft.common.base.errors import FedgraftError
from fedgraft.common.base.files import read_json
from fedgraft.common.base.locking import try_lock
from fedgraft.common.config.config_files import read_mapping
from fedgraft.common.metrics.table import TABLE, Metric, title, title_with_unit
from fedgraft.common.protocol.routing import privacy_request
from fedgraft.common.study.plan import Gradient, Statistics
from fedgraft.common.study.schedule import last_exchange
from fedgraft.common.study.study import Study, parse_study
from fedgraft.server.watch.follow import FollowedLines

Row = dict[str, Any]
State = Literal["not started", "running", "interrupted", "completed", "incomplete"]
Metrics = Mapping[str, Mapping[str, float | None]]
Contact = Mapping[str, tuple[str, float | None]]
"""By site: online, offline or revoked, and the seconds since it was last heard of."""


@dataclass(frozen=True)
class MetricView:
    """What a metric of a task is called, with its unit, and the ends that no value passes; None for no end."""

    title: str
    low: float | None
    high: float | None


Called = Mapping[str, Mapping[str, MetricView]]
"""By task and metric."""


@dataclass(frozen=True)
class RoundView:
    """One exchange that is done. `metrics` are means over the sites, by task and metric, None where unknown."""

    exchange: int
    stage: str
    round: int
    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    asked: int
    aggregated: int
    missing: Mapping[str, str]
    metrics: Metrics
    loss: float | None


@dataclass(frozen=True)
class SiteView:
    """One site. `exchange` is the last one that it took part in; `refusals` counts its refusals by code.

    `few` names the tasks of which it has too few cases to say anything.
    """

    name: str
    contact: str
    heard_s: float | None
    answered: bool | None
    exchange: int
    stage: str
    round: int
    refusals: Mapping[str, int]
    metrics: Metrics
    few: tuple[str, ...]
    epsilon: float | None
    delta: float | None
    unit: str


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment. `idle_s` is how long ago anything happened; `plain` names stages that add no noise."""

    folder: str
    study: str
    digest: str
    state: State
    headline: str
    stage: str
    round: int
    rounds: int
    exchange: int
    exchanges: int
    idle_s: float | None
    bytes_up: int
    bytes_down: int
    plain: tuple[str, ...]
    sites: tuple[SiteView, ...]
    history: tuple[RoundView, ...]
    called: Called
    """Of every metric that is shown."""

    @property
    def over(self) -> bool:
        """Whether the run has reached its end."""
        return self.state in ("completed", "incomplete")


class WatchedRun:
    """A run's folder, read again when it changed. It may not be there yet, and is never written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._files: dict[str, FollowedLines] = {}
        self._study: Study | None = None

    def look(self, contact: Contact | None = None) -> Snapshot:
        """The run as it is now. InputError if its study cannot be read."""
        study = self._read_study()
        history, events = self._lines("history.jsonl"), self._lines("events.jsonl")
        with understood(self.folder, "a run's folder, by its history and its events"):
            return self._looked(study, history, events, contact or {})

    def _looked(self, study: Study | None, history: list[Row], events: list[Row], contact: Contact) -> Snapshot:
        result = self._result(events)
        now = _current(events, history)
        return Snapshot(
            folder=str(self.folder),
            study=study.name if study else "",
            digest=study.digest if study else "",
            state=self._state(result, events, history),
            headline=str(result.get("headline", "")),
            stage=now["stage"],
            round=now["round"],
            rounds=now["rounds"],
            exchange=now["exchange"],
            exchanges=last_exchange(study) if study else 0,
            idle_s=round(max(0.0, time.time() - float(events[-1]["time"])), 1) if events else None,
            bytes_up=sum(row["bytes_up"] for row in history),
            bytes_down=sum(row["bytes_down"] for row in history),
            plain=_plain(study),
            sites=_sites(history, events, contact, over=bool(result)),
            history=tuple(_round(row) for row in history),
            called=_called(study, history),
        )

    def _read_study(self) -> Study | None:
        source = self.folder / "study.yaml"
        if self._study is None and source.is_file():
            self._study = parse_study(read_mapping(source), str(source))
        return self._study

    def _lines(self, name: str) -> list[Row]:
        """The whole lines of a file that is being written, or that a resumed run cuts back; only new ones are read."""
        lines = self._files.setdefault(name, FollowedLines(self.folder / name))
        return lines.read()

    def _result(self, events: list[Row]) -> Row:
        """The result, once the run is over: a run that is continued still has that of before."""
        over = not events or events[-1]["event"] == "finished"
        try:
            result = read_json(self.folder / "result.json") if over and (self.folder / "result.json").exists() else {}
        except FedgraftError:
            return {}
        return result if isinstance(result, dict) else {}

    def _state(self, result: Row, events: list[Row], history: list[Row]) -> State:
        if result:
            return "completed" if result.get("status") == "completed" else "incomplete"
        taken = _taken(self.folder / "lock")
        if not events and not history:
            return "running" if taken else "not started"
        return "interrupted" if taken is False else "running"


def _taken(lock: Path) -> bool | None:
    """Whether a process is at work on a run; None if none ever was."""
    try:
        with lock.open("r", encoding="ascii") as file:
            return not try_lock(file, shared=True)
    except FileNotFoundError:
        return None


def _plain(study: Study | None) -> tuple[str, ...]:
    """Stages that train or sum up without noise: epsilon says nothing of what leaves in them."""
    stages = study.plan if study else ()
    return tuple(
        stage.name
        for stage in stages
        if isinstance(stage.local, Gradient | Statistics) and privacy_request(stage) is None
    )


def _current(events: list[Row], history: list[Row]) -> Row:
    """Where the run is: the exchange that is under way, or the last one that is done."""
    last: Row = history[-1] if history else {"exchange": 0, "stage": "", "round": 0, "rounds": 0}
    under_way = next((event for event in reversed(events) if event["event"] in ("greeting", "exchange")), None)
    if under_way is None or (events[-1]["event"] == "finished"):
        return last
    if under_way["event"] == "greeting":
        return {**last, "stage": "greeting"}
    if under_way["exchange"] <= last["exchange"]:
        return last
    same = under_way["stage"] == last["stage"]
    number = last["round"] + 1 if same else 1
    rounds = last["rounds"] if same else 0
    return {"exchange": under_way["exchange"], "stage": under_way["stage"], "round": number, "rounds": rounds}


def _round(row: Row) -> RoundView:
    losses = [figures["loss"] for figures in row.get("train", {}).values() if "loss" in figures]
    return RoundView(
        exchange=row["exchange"],
        stage=row["stage"],
        round=row["round"],
        rounds=row["rounds"],
        seconds=row["seconds"],
        bytes_up=row["bytes_up"],
        bytes_down=row["bytes_down"],
        asked=len(row["sites_asked"]),
        aggregated=len(row["sites_aggregated"]),
        missing=row["missing"],
        metrics={task: _shown(own, own.get("summary", own["macro"])) for task, own in row.get("metrics", {}).items()},
        loss=sum(losses) / len(losses) if losses else None,
    )


def _sites(history: list[Row], events: list[Row], contact: Contact, *, over: bool) -> tuple[SiteView, ...]:
    greeted = [name for event in events if event["event"] == "greeted" for name in event["sites"]]
    absent = _absent(events)
    asked = [name for row in history for name in row["sites_asked"]]
    names = sorted({*contact, *greeted, *absent, *asked})
    answered = _answered(events, over=over)
    return tuple(_site(name, history, absent.get(name, {}), contact, answered) for name in names)


def _absent(events: list[Row]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for event in events:
        for name, code in (event.get("absent") or {}).items():
            found.setdefault(name, Counter())[code] += 1
    return found


def _answered(events: list[Row], *, over: bool) -> set[str] | None:
    """Who has answered in the exchange that is under way; None if there is none."""
    if over or not events:
        return None
    start = next((at for at in range(len(events) - 1, -1, -1) if events[at]["event"] == "exchange"), None)
    if start is None or any(event["event"] == "done" for event in events[start:]):
        return None
    return {event["site"] for event in events[start:] if event["event"] == "reply"}


def _site(
    name: str, history: list[Row], absent: Mapping[str, int], contact: Contact, answered: set[str] | None
) -> SiteView:
    refusals = Counter(absent) + Counter(row["missing"][name] for row in history if name in row["missing"])
    aggregated = next((row for row in reversed(history) if name in row["sites_aggregated"]), None)
    spent: Row = next((row["spent"][name] for row in reversed(history) if name in row.get("spent", {})), {})
    metrics: Row = next((row["metrics"] for row in reversed(history) if _measured(row, name)), {})
    state, heard_s = contact.get(name, ("", None))
    return SiteView(
        name=name,
        contact=state,
        heard_s=heard_s,
        answered=None if answered is None else name in answered,
        exchange=aggregated["exchange"] if aggregated else 0,
        stage=aggregated["stage"] if aggregated else "",
        round=aggregated["round"] if aggregated else 0,
        refusals=dict(sorted(refusals.items())),
        metrics={task: _shown(values, values["sites"].get(name, {})) for task, values in metrics.items()},
        few=tuple(task for task, values in metrics.items() if _too_few(values, name)),
        epsilon=spent.get("epsilon"),
        delta=spent.get("delta"),
        unit=str(spent.get("unit", "")),
    )


def _shown(values: Row, figures: Row) -> dict[str, float | None]:
    """What is shown first of a task, the headline before all else."""
    return {metric: figures[metric] for metric in values["shown"] if metric in figures}


def _called(study: Study | None, history: list[Row]) -> dict[str, dict[str, MetricView]]:
    """Of a plug-in's metric, which need not be installed here, what the run's record says."""
    tasks, found = study.tasks_by_name if study else {}, dict[str, dict[str, MetricView]]()
    for task, values in ((task, values) for row in history for task, values in row.get("metrics", {}).items()):
        facts = values.get("facts", {})
        for name in values["shown"]:
            ends = facts.get(name, {})
            own = TABLE.get(name, Metric(name, title(name), (), low=ends.get("low"), high=ends.get("high")))
            words = title_with_unit(own, tasks[task]) if task in tasks else own.title
            found.setdefault(task, {})[name] = MetricView(words, own.low, own.high)
    return found


def _too_few(values: Row, name: str) -> bool:
    return values.get("support", {}).get("sites", {}).get(name, {}).get("enough") is False


def _measured(row: Row, name: str) -> bool:
    return any(name in values.get("sites", {}) for values in row.get("metrics", {}).values())
