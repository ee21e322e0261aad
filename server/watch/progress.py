"""Shows how a run gets on, by reading the events in its folder: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedgraft.common.metrics.table import title
from fedgraft.common.study.schedule import schedule
from fedgraft.common.study.study import Study
from fedgraft.server.runs.run_folder import HELD, JOINED, NOTICE, WAITING
from fedgraft.server.watch.follow import followed


@contextmanager
def shown(run: Path, study: Study, console: Console) -> Iterator[None]:
    """Show the run in `run` while the body carries it out."""
    total = sum(1 for _ in schedule(study))
    view = _ProgressBar(console, total) if _can_move(console) else _Lines(console, total)
    with view, followed(run / "events.jsonl", view.take):
        yield


def _can_move(console: Console) -> bool:
    """Whether a bar can move there: on a terminal, and in a notebook that has widgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class _Lines:
    """Progress where there is no terminal: one plain line per exchange."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._stage = ""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def take(self, event: dict[str, Any]) -> None:
        """Print what the event says, if it says anything new."""
        if event["event"] == "greeted":
            self._console.print(_ready(event), highlight=False, markup=False, soft_wrap=True)
        elif words := _words(event):
            self._console.print(words, highlight=False, markup=False, soft_wrap=True)
        elif event["event"] == "exchange":
            self._stage = event["stage"]
        elif event["event"] == "done":
            text = f"{event['exchange']}/{self._total} {self._stage}{_macro(event)}{_missing(event)}"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class _ProgressBar:
    """A bar with stage, sites, metric and time left."""

    def __init__(self, console: Console, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[stage]:<12}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[sites]}"),
            TextColumn("{task.fields[metric]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID = self._progress.add_task("", total=total, stage="greeting", sites="", metric="")
        self._answered = 0
        self._asked = 0

    def __enter__(self) -> _ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def take(self, event: dict[str, Any]) -> None:
        """Move the bar by what the event says."""
        match event["event"]:
            case "exchange":
                self._answered, self._asked = 0, event["sites"]
                self._progress.update(self._task, stage=event["stage"], sites=f"0/{self._asked} sites")
            case "reply":
                self._answered += 1
                self._progress.update(self._task, sites=f"{self._answered}/{self._asked} sites")
            case "greeted" if event["absent"]:  # else the bar has it
                self._progress.console.print(_ready(event), highlight=False, markup=False, soft_wrap=True)
            case _ if words := _words(event):
                self._progress.console.print(words, highlight=False, markup=False, soft_wrap=True)
            case "done":
                self._progress.update(self._task, completed=event["exchange"], metric=_macro(event))
                if event["missing"]:
                    self._progress.console.print(
                        f"exchange {event['exchange']}{_missing(event)}", highlight=False, markup=False, soft_wrap=True
                    )


def _words(event: dict[str, Any]) -> str:
    """What somebody who waits should know of an event that is no step forward; nothing of others."""
    if event["event"] == NOTICE:
        return str(event["text"])
    if event["event"] == JOINED:
        return f"{', '.join(event['sites'])}: there now"
    if event["event"] == WAITING:
        away, count = event["sites"], event["needed"]
        who = ", ".join(away) if count == len(away) else f"{count} of {', '.join(away)}"
        return f"exchange {event['exchange']} waits for {who}, and is repeated then"
    if event["event"] == HELD:
        who, hours = ", ".join(event["sites"]), event["hours"]
        return f"exchange {event['exchange']} waits for the people of {who}, who decide on its release: {hours:g} hours"
    return ""


def _ready(event: dict[str, Any]) -> str:
    return f"{len(event['sites'])} sites ready{_missing({'missing': event['absent']})}"


def _macro(event: dict[str, Any]) -> str:
    known = {task: value for task, value in event["macro"].items() if value is not None}
    names = event.get("metric", {})
    return "".join(f"  {task} {title(names[task])} {value:.3f}" for task, value in known.items())


def _missing(event: dict[str, Any]) -> str:
    return "".join(f"; missing: {site}, {code}" for site, code in event["missing"].items())
