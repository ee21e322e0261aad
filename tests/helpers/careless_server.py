"""Ways in which the server, or the program itself, could break its promises, each a change of one of its rules."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer

from fedgraft.client.enrolment import config
from fedgraft.common.base import files, logs
from fedgraft.common.base.console import command_line
from fedgraft.common.protocol import bundle, wire
from fedgraft.common.protocol.bundle import WireError
from fedgraft.common.protocol.instructions import Answer, Code, Refusal
from fedgraft.server.fleet import fleet
from fedgraft.server.fleet.transport import Taken
from fedgraft.server.operations import gate
from fedgraft.server.operations.doors import Caller, Client, Doors
from fedgraft.server.operations.request_auth import RequestAuth
from fedgraft.server.provisioning.consortium import ServerEntry
from fedgraft.server.rounds.exchange import collect
from fedgraft.simulations.audit.program import words
from fedgraft.simulations.engines import run

Patch = pytest.MonkeyPatch


def shapes_are_believed(patch: Patch) -> None:
    """As in the first edition: no bounds, and a wall for what is expected to go wrong alone."""

    def lax(shape: Any, dtype: Any) -> tuple[tuple[int, ...], int]:
        return tuple(shape), math.prod(shape)

    def read(reply: Taken, exchange: int) -> tuple[Answer, int]:
        assert not isinstance(reply, Code)
        try:
            return wire.unpack_reply(reply.content), wire.size(reply.content)
        except WireError:
            return Refusal(exchange, Code.GARBAGE), 0

    for module in (bundle, wire):
        patch.setattr(module, "form_of", lax)
    patch.setattr(fleet, "_read_reply", read)


def replies_are_not_looked_at(patch: Patch) -> None:
    patch.setattr(collect, "fault", lambda *_: None)


def counts_are_believed(patch: Patch) -> None:
    patch.setattr(collect.Collector, "_bad_count", lambda *_: None)


def anybody_speaks_for_anybody(patch: Patch) -> None:
    patch.setattr(gate, "speaks_for_itself", lambda *_: True)


def signatures_hold_for_ever(patch: Patch) -> None:
    patch.setattr(RequestAuth, "_remember", lambda *_: None)


def all_of_flower_is_open(patch: Patch) -> None:
    patch.setattr(gate, "FLEET", gate.FLEET | {"/v1/control/start-run"})


def everybody_is_let_in(patch: Patch) -> None:
    def admit(self: Doors, line: socket.socket, client: Client) -> bool:
        self._callers[client] = Caller(line, client[0], self._clock())
        return True

    patch.setattr(Doors, "admit", admit)


def first_come_first_served(patch: Patch) -> None:
    patch.setattr(Doors, "_drop", lambda *_, **__: False)


def nobody_is_told_where_it_listens(patch: Patch) -> None:
    patch.setattr(ServerEntry, "says_where", property(lambda self: f"port {self.port}"))


def folders_are_as_the_mask_has_them(patch: Patch) -> None:
    @contextmanager
    def made(folder: Path) -> Iterator[None]:
        folder.mkdir(parents=True, exist_ok=True)
        yield

    patch.setattr(run, "private_folder", made)


def site_files_for_all(patch: Patch) -> None:
    real = config.write_atomic
    patch.setattr(config, "write_atomic", lambda path, data, **_: real(path, data, private=False))


def traces_are_printed(patch: Patch) -> None:
    def say(error: BaseException, *, debug: bool) -> int:
        traceback.print_exception(error)
        return 1

    patch.setattr(command_line, "say_error", say)


def panics_are_no_exceptions(patch: Patch) -> None:
    """The front door as it was: a wall for exceptions alone, and none around threads."""

    def run_command(program: typer.Typer, debug: Callable[[], bool], typed: Sequence[str] | None = None) -> int:
        before = os.umask(0o077)
        try:
            return int(program(args=typed, standalone_mode=False) or 0)
        except (Exception, KeyboardInterrupt) as error:
            return command_line.say_error(error, debug=debug())
        finally:
            os.umask(before)

    patch.setattr(words, "run_command", run_command)


def values_are_in_the_trace(patch: Patch) -> None:
    real = traceback.TracebackException.from_exception
    told = lambda error, **_: real(error, capture_locals=True)  # noqa: E731
    patch.setattr(traceback.TracebackException, "from_exception", told)


def traces_for_all(patch: Patch) -> None:
    real = files.write_atomic

    def lax(path: Path, data: bytes, **_: bool) -> None:
        real(path, data)
        path.chmod(0o644)

    patch.setattr(files, "write_atomic", lax)


def libraries_say_where_logs_go(patch: Patch) -> None:
    """As if some import had come first."""

    @contextmanager
    def left_alone() -> Iterator[None]:
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger().addHandler(handler)
        yield

    patch.setattr(logs, "bare_logs", left_alone)


def commands_print_their_own(patch: Patch) -> None:
    patch.setattr(words, "command_group", lambda description: typer.Typer(help=description))
