"""What there is to watch: one run, and the server that carries it, looked at again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedgraft.common.base.disk import oldest_first
from fedgraft.common.base.errors import FedgraftError, InputError
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.runs.run_folder import run_of
from fedgraft.server.watch.snapshot import Contact, Snapshot, WatchedRun

_ASK_S = 2.0
"""So often the server is asked for its sites."""


@dataclass(frozen=True)
class View:
    """All that is shown. `answers` says whether the server does, None if the run has none; `fault` why none is seen."""

    consortium: str
    answers: bool | None
    run: Snapshot | None
    fault: str

    def plain(self) -> dict[str, Any]:
        """The view as plain values, for JSON."""
        return asdict(self)


class Board:
    """A run that is watched: the one in `folder`, or the newest of the server. The server is asked in the background.

    InputError if there is neither.
    """

    def __init__(self, home: ServerHome, folder: Path | None) -> None:
        own = (home.path / "server.json").is_file()
        if folder is None and not own:
            raise InputError("Which run?", fix="Give a run's folder, or the server's with --home.")
        simulated = folder is not None and (folder / "simulation.json").is_file()
        self.home_folder = home.path
        """Where a server would be: whether or not the run has to do with it, those who may watch are written there."""
        self._home = None if simulated or not own else home
        self._folder = folder
        self._consortium = self._home.facts().consortium if self._home else ""
        self._watched: WatchedRun | None = None
        self._contact: Contact = {}
        self._answers: bool | None = None
        self._stop = threading.Event()
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._looking = threading.Lock()

    def __enter__(self) -> Self:
        if self._home is not None:
            self._asking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def view(self) -> View:
        """Everything as it is now; a folder that cannot be read is a fault, and not the end."""
        with self._looking:
            try:
                return View(self._consortium, self._answers, self._run().look(self._contact), "")
            except FedgraftError as error:
                return View(self._consortium, self._answers, None, str(error))

    def _run(self) -> WatchedRun:
        folder = self._folder or _newest(self._home) or Path("no run yet")
        if self._watched is None or self._watched.folder != folder.absolute():
            self._watched = WatchedRun(folder)
        return self._watched

    def _ask(self) -> None:
        from fedgraft.server.operations.overview import sites  # Flower takes a second to import

        assert self._home is not None
        while True:
            try:
                self._contact = {row.name: (row.state, row.heard_s) for row in sites(self._home)}
                self._answers = True
            except (FedgraftError, OSError):
                self._contact = dict.fromkeys(self._contact, ("unknown", None))
                self._answers = False
            if self._stop.wait(_ASK_S):
                return


def _newest(home: ServerHome | None) -> Path | None:
    """The folder of the run that the server started last, if it is there still."""
    notes = oldest_first(home.studies.glob("*.json")) if home else []
    folders = (Path(run_of(note)) for note in reversed(notes))
    return next((folder for folder in folders if folder.is_dir()), None)


def watch(board: Board, show: Callable[[View], None], poll_s: float) -> None:
    """Show what there is until the run is over."""
    while True:
        view = board.view()
        show(view)
        if view.run is not None and view.run.over:
            return
        time.sleep(poll_s)
