"""What README and docs tell people to type exists, with those options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from fedgraft import cli
from helpers.plugins import fresh

assert fresh
ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
GUIDE = ROOT / "docs" / "deploy.md"
TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


def commands(text: Path) -> list[str]:
    """The commands in the blocks of a text, each without what is said of it after two spaces or more."""
    blocks = re.findall(r"```\w*\n(.*?)```", text.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]
    typed = [line.removeprefix("$ ") for line in lines]
    return [line.partition("  ")[0] for line in typed if line.startswith("fedgraft ")]


COMMANDS = sorted({line for text in TEXTS for line in commands(text)})


def test_the_guide_types_nothing_but_commands():
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line]
    assert len(lines) > 10
    assert set(lines) <= set(COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_texts_exists_with_its_options(line, fresh, tmp_path):
    fresh.chdir(tmp_path)  # what --plugin names is loaded while the command line is read
    (tmp_path / "my_own.py").write_text("import fedgraft as fg\nfg.register_loss('own', object)\n")
    words = shlex.split(line.removesuffix("&"))  # the shell's, which starts it beside the next line
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
