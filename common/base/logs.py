"""Logs of what runs for long: plain lines or JSON, on stderr and in files that do not grow for ever."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

_PLAIN = "%(asctime)s %(levelname)s %(name)s %(message)s"
_FILE_BYTES, _FILES = 5 << 20, 3
_NOISY = ("httpx", "httpcore", "uvicorn")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts)


class _Shown(logging.Formatter):
    """What a terminal, or a container's log, shows: the kind of an error, and no trace, which may be of anything."""

    def __init__(self, inner: logging.Formatter, kept: str = "") -> None:
        super().__init__()
        self._inner, self._kept = inner, kept

    def format(self, record: logging.LogRecord) -> str:
        """As the file has it, but for the trace."""
        shown = logging.makeLogRecord(vars(record))
        if record.exc_info and record.exc_info[0] is not None:
            shown.msg = f"{record.getMessage()} ({record.exc_info[0].__name__}{self._kept})"
            shown.args = None
        shown.exc_info = shown.exc_text = shown.stack_info = None
        return self._inner.format(shown)


def start_logs(file: Path, *, as_json: bool) -> None:
    """Send all logs of this process to stderr and to `file`, which is rotated and readable by its owner alone.

    Traces of errors are in the file alone.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr), RotatedFile(file)]
    formatter = _Json() if as_json else logging.Formatter(_PLAIN)
    for handler, form in zip(handlers, (_Shown(formatter, f"; the trace is in {file}"), formatter), strict=True):
        handler.setFormatter(form)
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def bare_logs() -> Iterator[None]:
    """Send warnings of all libraries to stderr without traces, unless somebody has said where logs go.

    Some libraries say so when they are imported, and then whole traces are shown.
    """
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Shown(logging.Formatter()))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def file_log(path: Path) -> logging.Logger:
    """A log of plain lines in a file of its own, rotated and private; for what other programs say."""
    logger = logging.getLogger(f"fedgraft.file.{path}")
    if not logger.handlers:
        logger.addHandler(RotatedFile(path))
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


class RotatedFile(RotatingFileHandler):
    """A log's file that is its owner's alone and does not grow for ever: older lines go to FILE.1 and so on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "a", _FILE_BYTES, _FILES, encoding="utf-8")

    def _open(self):  # type: ignore[no-untyped-def]  # as in the base class
        file = super()._open()
        Path(self.baseFilename).chmod(0o600)
        return file
