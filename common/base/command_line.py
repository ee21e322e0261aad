"""Commands and how they end: a message of a line and an exit code, and never a traceback on a terminal.

What stands in a program's variables can be a passphrase, a key or a patient's name, and a terminal is read over
shoulders and copied into tickets. With --debug the trace goes into a file that its owner alone can read, and holds no
values even there.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import typer

_STOPPED, _FAILED, _WRONG = 130, 1, 2


def command_group(description: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(
        help=description,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
    )


def say_error(error: BaseException, *, debug: bool) -> int:
    """Say on stderr why a command ended, and give its exit code."""
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        typer.echo("stopped", err=True)
        return _STOPPED
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # what was typed is no command of ours
        error.show()
        return int(error.exit_code)
    message, code = _message(error)
    typer.echo(f"error: {message}", err=True)
    if debug:
        typer.echo(_kept(error), err=True)
    elif not _known(error):
        typer.echo("Repeat it as `fedgraft --debug ...`, which keeps the trace in a private file.", err=True)
    return code


@contextlib.contextmanager
def threads_that_say_a_line(*, debug: Callable[[], bool]) -> Iterator[None]:
    """What ends a thread within is a line on stderr too, as what ends the command is; Python would show the trace."""

    def said(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
            say_error(ended.exc_value, debug=debug())

    before = threading.excepthook
    threading.excepthook = said
    try:
        yield
    finally:
        threading.excepthook = before


def _known(error: BaseException) -> bool:
    from fedgraft.common.base.errors import FedgraftError

    return isinstance(error, FedgraftError | OSError)


def _message(error: BaseException) -> tuple[str, int]:
    """A message for people, and the exit code. The text of an exception that is not for people is not shown."""
    from fedgraft.common.base.errors import FedgraftError

    if isinstance(error, FedgraftError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.errno:
        from fedgraft.common.base.disk import DISK_FULL, in_words

        return in_words(error), _FAILED if error.errno in DISK_FULL else _WRONG
    if isinstance(error, MemoryError):
        return "There is not enough memory for this.", _FAILED
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" in {last[0].name}, line {last[0].lineno} of {Path(last[0].filename).name}" if last else ""
    return f"This should not have happened: {type(error).__name__}{place}.", _FAILED


def _kept(error: BaseException) -> str:
    """Put the trace, without what variables held, into a file of the user's own, and say where it is."""
    from fedgraft.common.base.files import home, write_atomic

    path = home() / "debug" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.txt"
    told = traceback.TracebackException.from_exception(error, capture_locals=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, "".join(told.format()).encode("utf-8", "backslashreplace"), private=True)
    except OSError as failed:
        return f"The trace could not be kept: {path}: {failed.strerror}."
    return f"The trace is in {path}, which nobody else can read."
