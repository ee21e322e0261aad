"""What docs/deploy.md tells people to type exists, with those options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from fedgraft import cli

ROOT = Path(__file__).parents[4]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]


def test_there_are_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_guide_exists_with_its_options(line):
    words = shlex.split(line)
    assert words.pop(0) == "fedgraft"
    command = get_command(cli.app)
    context = typer.Context(command)
    while hasattr(command, "commands"):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no {name}"
        command = found
    # Parsing raises on an option that does not exist, or an argument too many.
    command.make_context(words and line, words)
