"""Reads the lines of a file as a run writes them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
