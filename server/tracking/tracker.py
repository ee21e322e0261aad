"""Trackers by name: what they are told, and that a run goes on whatever becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from fedgraft.common.base.errors import ENDS, InputError
from fedgraft.common.base.files import is_there, read_json
from fedgraft.common.plugins.registry import Kind, load
from fedgraft.common.study.study import Study
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.server.watch.follow import followed

_OWN = {
    "csv": "csv_file:CsvTracker",
    "tensorboard": "tensorboard:TensorBoardTracker",
    "mlflow": "mlflow_run:MlflowTracker",
}

ARM = "arm.json"
"""In the folder of a comparison's arm: `name`, the comparison's folder as `within`, from there, and `facts` by name."""

Row = Mapping[str, Any]


class Tracker(Protocol):
    """What a tracker is told, in this order; a run that goes on begins once more."""

    def begin(self, run: Path, study: Study) -> None:
        """The run in this folder begins or goes on."""

    def round(self, row: Row) -> None:
        """An exchange is done; `row` is its line in the run's history."""

    def end(self, run: Path, result: Row | None) -> None:
        """The run has ended, with its `result.json`, or was broken off without."""


def trackers(names: Sequence[str]) -> list[Tracker]:
    """Trackers by their names: fedgraft's, and what distributions bring as entry points of the group
    `fedgraft.trackers`, a callable without arguments that gives one.

    InputError for a name that is not known, or whose package is not installed.
    """
    made: list[Tracker] = []
    for name in dict.fromkeys(names):
        try:
            made.append((_own(_OWN[name]) if name in _OWN else load(Kind.TRACKERS, name, _OWN))())
        except ImportError as error:
            fix = f"pip install {name}." if name in _OWN else "Install what it takes."
            raise InputError(f"--track {name}: {error.name} is not installed.", fix=fix) from None
    return made


def _own(place: str) -> Callable[[], Tracker]:
    module, _, name = place.partition(":")
    make: Callable[[], Tracker] = getattr(import_module(f"fedgraft.server.tracking.{module}"), name)
    return make


@contextmanager
def tracked(run: Path, to: Sequence[Tracker], say: Callable[[str], object]) -> Iterator[None]:
    """Tell trackers of a run that was set up, while the body carries it out.

    One that fails is heard of once, by `say`, and is told no more.
    """
    guarded = [_Guarded(tracker, say) for tracker in to]

    def tell(what: str, *facts: object) -> None:
        for one in guarded:
            one.tell(what, *facts)

    if not guarded:
        yield
        return

    def done(event: Row) -> None:
        # The history is cut back where a run goes on, so it cannot be followed itself; events only grow.
        if event["event"] == "done":
            rows = [row for row in RunFolder(run).history() if row["exchange"] == event["exchange"]]
            tell("round", *rows[-1:])

    tell("begin", run, RunFolder(run).study())
    try:
        with followed(run / "events.jsonl", done):
            yield
    finally:
        tell("end", run, _result(run))


def _result(run: Path) -> Row | None:
    if not is_there(run / "result.json"):
        return None
    found: Row = read_json(run / "result.json")
    return found


class _Guarded:
    def __init__(self, tracker: Tracker, say: Callable[[str], object]) -> None:
        self._tracker: Tracker | None = tracker
        self._say = say

    def tell(self, what: str, *facts: object) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, what)(*facts)
        except ENDS:
            raise
        except BaseException as error:  # the wall: a run is worth more than its tracker
            name = type(self._tracker).__name__
            self._tracker = None
            self._say(f"{name} failed and is told no more ({type(error).__name__}); the run goes on.")
