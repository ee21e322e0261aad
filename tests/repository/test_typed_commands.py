"""What a page tells somebody to type exists: every command of fedgraft in a block of code, with every option."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from typer.main import get_command

from fedgraft import cli

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
UNITS = sorted((ROOT / "deploy").glob("*.service"))
PROGRAM = get_command(cli.app)


def typed(text: str) -> Iterator[list[str]]:
    """The words after `fedgraft` of every line that calls it; what is called so and is no call (an image) has none."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:  # a quote of prose
            words = line.split()
        for at, word in enumerate(words):
            if re.fullmatch(r"(.*/)?fedgraft", word.removeprefix("ExecStart=")) and re.match(
                r"[a-z]", (words[at + 1 :] or [""])[0]
            ):
                yield words[at + 1 :]
                break


def faults(words: list[str]) -> list[str]:
    """What of these words is no command, or no option of it."""
    command, rest = PROGRAM, list(words)
    while isinstance(command, click.Group):
        name = rest.pop(0) if rest else ""
        if name not in command.commands:
            return [f"fedgraft {' '.join(words)}: no command {name}"]
        command = command.commands[name]
    known = {option for taken in command.params for option in (*taken.opts, *taken.secondary_opts)} | {"--help"}
    given = [option[0] for word in rest if (option := re.match(r"--[a-z][a-z-]*", word))]
    return [f"fedgraft {' '.join(words)}: no option {option}" for option in given if option not in known]


@pytest.mark.parametrize("page", [*PAGES, *UNITS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    blocks = [text] if page in UNITS else [block for language, block in fenced if language in ("", "sh", "console")]
    assert [fault for block in blocks for words in typed(block) for fault in faults(words)] == []


def test_a_command_that_does_not_exist_is_found() -> None:
    text = "podman run -v x:/state fedgraft site start --home /state --nowhere\nfedgraft site stop\n"
    text += "podman save fedgraft -o x\n"
    (first, second) = typed(text)
    assert faults(first) == ["fedgraft site start --home /state --nowhere: no option --nowhere"]
    assert faults(second) == ["fedgraft site stop: no command stop"]
    assert faults(["simulate", "quickstart", "--set", "seed=1"]) == []
