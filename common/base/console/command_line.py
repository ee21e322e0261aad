"""Commands and how they end: a message of a line and an exit code, and never a traceback on a terminal.

What stands in a program's variables can be a passphrase, a key or a patient's name, and a terminal is read over
shoulders and copied into tickets. With --debug the trace goes into a file that its owner alone can read, and holds no
values even there.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import typer

from fedgraft.common.base.console.printable import harmless

_STOPPED, _FAILED, _WRONG = 130, 1, 2


def command_group(description: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(
        help=description,
        no_args_is_help=True,
        suggest_commands=not hasattr(click.exceptions, "NoSuchCommand"),  # newer ones of click say it themselves
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
    )


def examples(*lines: str) -> str:
    """What stands below a command's help: lines that can be typed."""
    return "\n\n".join(["For example:", *lines])


def run_command(program: typer.Typer, debug: Callable[[], bool], words: Sequence[str] | None = None) -> int:
    """Run what was typed, or these words, and give the exit code. However it ends, people see a line and no trace.

    `debug` is asked at the end, since it is typed too. What is written meanwhile is its owner's alone.
    """
    with _own_files(), _no_traces(debug):
        try:
            code = program(args=words, standalone_mode=False)
        except (SystemExit, GeneratorExit):  # of ENDS, all but what a person has typed
            raise
        except BaseException as error:  # extensions in Rust raise what is no Exception
            return say_error(error, debug=debug())
        return code if isinstance(code, int) else 0


@contextmanager
def _own_files() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _no_traces(debug: Callable[[], bool]) -> Iterator[None]:
    """Say a line of what goes wrong where nobody catches it: in a thread, in what Python tidies up, in logs."""
    from fedgraft.common.base.logs import bare_logs

    def say(failed: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
        if failed.exc_value is not None:
            say_error(failed.exc_value, debug=debug())

    before = threading.excepthook, sys.unraisablehook
    threading.excepthook = sys.unraisablehook = say
    try:
        with bare_logs():
            yield
    finally:
        threading.excepthook, sys.unraisablehook = before


def say_error(error: BaseException, *, debug: bool) -> int:
    """Say on stderr why a command ended, and give its exit code."""
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        typer.echo("stopped", err=True)
        return _STOPPED
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # what was typed is no command of ours
        error.show()
        return int(error.exit_code)
    message, code = _message(error)
    typer.echo(f"error: {harmless(message)}", err=True)
    if debug:
        typer.echo(_kept(error), err=True)
    elif not _known(error):
        typer.echo("Repeat it as `fedgraft --debug ...`, which keeps the trace in a private file.", err=True)
    return code


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
