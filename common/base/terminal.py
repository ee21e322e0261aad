"""How commands speak to a person."""

from __future__ import annotations

from rich.console import Console

OUT, ERR = Console(), Console(stderr=True)


def say(text: str) -> None:
    """One line as it is: paths can be copied, and brackets in names mean nothing."""
    OUT.print(text, highlight=False, markup=False, soft_wrap=True)


def figure(value: float | None) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"
