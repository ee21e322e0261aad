"""How commands speak to a person."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from fedgraft.common.base.console.printable import harmless


class Terminal(Console):
    """A console on which no text is obeyed, wherever it stands: in lines, tables and bars."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, but for what stands in the texts themselves."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else harmless(text), style, control)


OUT, ERR = Terminal(), Terminal(stderr=True)


def say(text: str) -> None:
    """One line as it is: paths can be copied, and brackets in names mean nothing."""
    OUT.print(text, highlight=False, markup=False, soft_wrap=True)


def figure(value: float | None) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"
