"""How commands speak to a person."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from fedgraft.common.base.console.printable import harmless

_WIDEST, _STEP = 400, 10


class Terminal(Console):
    """A console on which no text is obeyed, wherever it stands: in lines, tables and bars; and no figure is cut."""

    def print(self, *objects: Any, **how: Any) -> None:
        """As rich does, but a table that does not fit is as wide as its words need, and goes on in the next line."""
        tables = [one for one in objects if isinstance(one, Table)]
        own, wanted = self._width, max((self._needed(one) for one in tables), default=0)
        try:
            if wanted > self.width:
                self._width = wanted
            super().print(*objects, **how)
        finally:
            self._width = own

    def _needed(self, table: Table) -> int:
        """The width, this console's or more, at which nothing of what a table says is cut."""
        whole, widths = self._letters(table, _WIDEST), range(self.width, _WIDEST, _STEP)
        at = bisect_left(widths, True, key=lambda width: self._letters(table, width) == whole)
        return widths[at] if at < len(widths) else _WIDEST

    def _letters(self, table: Table, width: int) -> int:
        lines = self.render_lines(table, self.options.update(width=width), pad=False)
        return sum(letter.isalnum() for line in lines for segment in line for letter in segment.text)

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
