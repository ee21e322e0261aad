"""Reads the lines of a file as a run writes them, each once: a long run's history is tens of megabytes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fedgraft.common.base.disk import naming, understood

_POLL_S = 0.25


@contextmanager
def followed(path: Path, take: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Give `take` each whole line that is written while the body runs, parsed; the last ones before it is left."""
    stop = threading.Event()
    start = path.stat().st_size if path.exists() else 0
    thread = threading.Thread(target=_follow, args=(path, start, take, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(path: Path, start: int, take: Callable[[dict[str, Any]], None], stop: threading.Event) -> None:
    """Read whole lines as they are written; once more after the end."""
    at, rest = start, b""
    while True:
        last = stop.wait(_POLL_S)
        if path.exists():
            with path.open("rb") as file:
                file.seek(at)
                rest += file.read()
                at = file.tell()
            *lines, rest = rest.split(b"\n")
            for line in lines:
                take(json.loads(line))
        if last:
            return


class FollowedLines:
    """A file of JSON lines that is written to, or that a resumed run cuts back; it may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        self._stamp: tuple[int, ...] = ()
        self._last, self._end = b"", 0

    def read(self) -> list[dict[str, Any]]:
        """All whole lines that there are by now. InputError if they are none."""
        try:
            with naming(self._path), self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
                if stamp != self._stamp:
                    self._take(file, stamp)
                    self._stamp = stamp
        except FileNotFoundError:
            self._forget()
        return self._rows

    def _take(self, file: IO[bytes], stamp: tuple[int, ...]) -> None:
        """Read what comes after the last line that is known, or all anew if that is not there any more."""
        file.seek(self._end - len(self._last))
        if file.read(len(self._last)) != self._last or stamp[2:] != self._stamp[2:]:
            self._forget()
            file.seek(0)
        data = file.read()
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        with understood(self._path, "a list of what happened in a run"):
            rows = [dict(json.loads(line)) for line in lines]
        self._rows = self._rows + rows
        self._last = lines[-1] if lines else self._last
        self._end += sum(map(len, lines))

    def _forget(self) -> None:
        self._rows, self._stamp = [], ()
        self._last, self._end = b"", 0
