"""What a table says is there to read, also on a narrow terminal and in a file."""

from __future__ import annotations

import io

import pytest
from rich.table import Column, Table

from fedgraft.common.base.console.terminal import Terminal

FIGURES = ["0.884", "0.841, 0.915", "0.788", "-0.004", "-0.042, +0.029", "1.000", "not decided"]


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_no_figure_is_cut_and_the_console_stays_as_wide_as_it_was(width: int) -> None:
    table = Table(Column("arm", no_wrap=True), *(f"column {at}" for at in range(len(FIGURES))))
    table.add_row("imagenet_probe, 100 cases", *FIGURES)
    terminal = Terminal(file=io.StringIO(), width=width)
    terminal.print(table)
    said = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in said
    assert all(word.strip(",") in said for one in FIGURES for word in one.split())
    assert "imagenet_probe, 100 cases" in said
    assert terminal.width == width


def test_what_fits_is_no_wider_than_the_console() -> None:
    table = Table("file", "what is wrong with it")
    table.add_row("east.csv", "a long sentence " * 20)
    terminal = Terminal(file=io.StringIO(), width=60)
    terminal.print(table)
    assert max(map(len, terminal.file.getvalue().splitlines())) <= 60  # type: ignore[attr-defined]
