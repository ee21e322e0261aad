"""What the command line says of itself: help for everything, examples that can be typed, a version."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from conftest import Command
from fedgraft.cli import app
from fedgraft.common.base.environment import fedgraft_version


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, (*path, name))
        else:
            yield (*path, name), one


ALL = dict(commands(typer.main.get_command(app)))
EXAMPLES = [line for one in ALL.values() for line in (one.epilog or "").splitlines() if line.startswith("fedgraft ")]


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_argument_and_option_has_help(path: tuple[str, ...], command: Command) -> None:
    one = ALL[path]
    assert one.help
    code, out, _ = command(*path, "--help")
    assert code == 0
    said = " ".join(out.replace("│", " ").split())
    for parameter in one.params:
        assert parameter.help, parameter.name
        assert parameter.help.split()[0] in said, f"{parameter.name}: its help is not shown"


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 8


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_can_be_typed(line: str) -> None:
    """Its words are taken by the command that it names, whatever there is on the disk."""
    words = shlex.split(line)[1:]
    path = next(path for path in ALL if tuple(words[: len(path)]) == path)
    context = ALL[path].make_context(" ".join(path), words[len(path) :], resilient_parsing=False)
    assert context.params


def test_the_version(command: Command) -> None:
    assert command("--version") == (0, f"fedgraft {fedgraft_version()}\n", "")


def test_doctor_shows_a_table(command: Command) -> None:
    code, out, _ = command("doctor")
    assert code == 0
    assert "│ torch " in out
    assert "No problems found." in out
