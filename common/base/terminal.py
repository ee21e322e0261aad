"""How commands speak to a person."""

from __future__ import annotations

from rich.console import Console

from fedgraft.common.base.printable import harmless

OUT, ERR = Console(), Console(stderr=True)


def say(text: str) -> None:
    """One line as it is: paths can be copied, brackets in names mean nothing, and nor does what terminals obey."""
    OUT.print(harmless(text), highlight=False, markup=False, soft_wrap=True)


def figure(value: float | None) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"
