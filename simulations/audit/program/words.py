"""How a command fails: a line for people, no values of variables, and the trace in a file of theirs if they ask."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import traceback
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from fedgraft.common.base.console.command_line import command_group, run_command
from fedgraft.common.base.errors import ENDS, InputError

_PLACES = ("by itself", "in a thread", "in a log")
_HOME, _SECRET = "FEDGRAFT_HOME", "orchid-lantern-quartz"


class _Panic(BaseException):
    """What extensions in Rust raise, and is no Exception."""


def words_of_a_command(folder: Path) -> Iterator[str]:
    """A command that fails in each of some ways, and in some places, while a variable holds a passphrase."""
    failures = (ZeroDivisionError(_SECRET), InputError("The kit is damaged."), _Panic(_SECRET))
    for at, (failure, debug, place) in enumerate(product(failures, (False, True), _PLACES)):
        home, name = folder / str(at), f"{type(failure).__name__} {place}"
        shown = _ended(failure, home, place, debug=debug)
        if not shown or any(part in shown for part in (_SECRET, "Traceback", 'File "')):
            yield f"{name} ends with more than a line on a terminal, or with none"
        if place != "in a log":
            yield from (f"the trace of {name} {fault}" for fault in _kept(home, debug=debug))
    group = command_group("Tried by the audit.")
    if group.pretty_exceptions_enable or group.pretty_exceptions_show_locals:
        yield "commands print traces of their own"


def _kept(home: Path, *, debug: bool) -> Iterator[str]:
    """What is wrong with the traces that a command has left."""
    traces = [path for path in home.rglob("*") if path.is_file()]
    if len(traces) != debug:
        yield "is not kept" if debug else "is kept, and nobody asked"
    for path in traces:
        if path.stat().st_mode & 0o077 or path.parent.stat().st_mode & 0o077:
            yield "can be read by others"
        if f"held = '{_SECRET}'" in path.read_text():
            yield "holds the values of variables"


def _ended(failure: BaseException, home: Path, place: str, *, debug: bool) -> str:
    """All that a terminal shows of a command that fails like that."""
    shown, program = io.StringIO(), command_group("Tried by the audit.")

    def fails() -> None:
        held = _SECRET
        raise failure if held else AssertionError

    @program.command()
    def join() -> None:
        if place == "in a thread":
            (thread := threading.Thread(target=fails)).start()
            thread.join()
        elif place == "in a log":
            try:
                fails()
            except ENDS:
                raise
            except BaseException:
                logging.getLogger("fedgraft.audit").exception("It was not done")
        else:
            fails()

    with _at_home(home), _no_handlers(), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            run_command(program, lambda: debug, [])
        except ENDS:
            raise
        except BaseException as error:  # what the interpreter would print
            traceback.print_exception(error)
    return shown.getvalue()


@contextlib.contextmanager
def _no_handlers() -> Iterator[None]:
    """As a program starts, when nobody has said where logs go."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = before


@contextlib.contextmanager
def _at_home(home: Path) -> Iterator[None]:
    """With this folder as that of the person's own files, and a mask that lets everybody read."""
    before, mask = os.environ.get(_HOME), os.umask(0)
    os.environ[_HOME] = str(home)
    try:
        yield
    finally:
        os.umask(mask)
        os.environ.pop(_HOME)
        if before is not None:
            os.environ[_HOME] = before
