"""A run in the terminal: a picture that is drawn again on a terminal, a line for everything new elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedgraft.common.metrics.support import TOO_FEW
from fedgraft.server.watch.board import View
from fedgraft.server.watch.snapshot import (
    Called,
    RoundView,
    SiteView,
    Snapshot,
)

_ROUNDS = 8
"""So many of the last rounds are shown."""

_BAR = 60
_AGES_S = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class ScreenPicture:
    """The whole state, drawn again in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, view: View) -> None:
        """Draw `view` in place of the one before."""
        self._live.update(picture(view), refresh=True)


class Lines:
    """A line for everything that is new since the last look."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, str] = {}
        self._rounds = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, view: View) -> None:
        """Print what `view` has that the one before had not."""
        if view.answers is not None:
            self._tell("server", f"the server {'answers' if view.answers else 'does not answer'}")
        if view.run is None:
            self._tell("run", view.fault)
            return
        run = view.run
        self._tell("run", f"study {run.study}, digest {run.digest}" if run.study else f"{run.folder}: no run yet")
        for site in run.sites:
            if site.contact:
                self._tell(f"site {site.name}", f"{site.name} is {site.contact}")
        # A run that is continued begins again after its last checkpoint.
        self._rounds = min(self._rounds, len(run.history))
        for row in run.history[self._rounds :]:
            self._print(f"{row.exchange}/{run.exchanges} {describe(row, run.called)}")
        self._rounds = len(run.history)
        self._tell("privacy", privacy(run))
        self._tell("state", f"{run.state}: {run.headline}" if run.over else run.state)

    def _tell(self, about: str, text: str) -> None:
        if self._told.get(about) != text:
            self._told[about] = text
            self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(clean(text), markup=False, highlight=False, soft_wrap=True)


def picture(view: View) -> RenderableType:
    """All of a view as something that rich can draw."""
    server = "" if view.answers is None else ", its server answers" if view.answers else ", its server does NOT answer"
    head = Text(f"{clean(view.consortium)}{server}" if view.consortium else "simulation")
    if view.run is None:
        return Group(head, Text(clean(view.fault), style="red"))
    run = view.run
    parts: list[RenderableType] = [head, *_headlines(run), _sites(run)]
    if run.history:
        parts.append(_rounds(run))
    return Group(*parts)


def clean(text: str) -> str:
    """`text` without what a terminal takes for commands; what sites and files say is shown, and not obeyed."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def describe(row: RoundView, called: Called) -> str:
    """One exchange in one line: stage, round, sites, figures, bytes, seconds, who is missing."""
    where = row.stage if row.stage == "evaluate" else f"{row.stage}, round {row.round} of {row.rounds}"
    parts = [f"{row.aggregated} of {row.asked} sites", *_figures(row, called)]
    parts += [f"{size(row.bytes_up)} up, {size(row.bytes_down)} down", f"{row.seconds:.1f} s"]
    missing = "".join(f"; missing: {site}, {code}" for site, code in row.missing.items())
    return f"{where}: {', '.join(parts)}{missing}"


def privacy(run: Snapshot) -> str:
    """What was paid, over all sites, in one line."""
    spent = [site for site in run.sites if site.epsilon is not None]
    plain = f"without noise: {', '.join(run.plain)}" if run.plain else ""
    if not spent:
        return f"privacy: nothing spent{'; ' + plain if plain else ''}"
    most = max(spent, key=lambda site: site.epsilon or 0.0)
    text = f"privacy spent: epsilon {most.epsilon:.3g} at most, at {most.name}, per {most.unit}"
    return f"{text}{'; ' + plain if plain else ''}"


def size(count: int) -> str:
    """Bytes in units of 1,000, such as "44.8 MB"."""
    return next((f"{count / unit:.1f} {name}" for unit, name in _UNITS if count >= unit), f"{count} B")


def ago(seconds: float | None) -> str:
    """How long ago, such as "5 minutes ago", "now" or "never"."""
    if seconds is None:
        return "never"
    return next((f"{seconds / unit:.0f} {name} ago" for unit, name in _AGES_S if seconds >= 2 * unit), "now")


def _headlines(run: Snapshot) -> list[RenderableType]:
    if not run.study:
        return [Text(clean(f"{run.folder}: no run yet"))]
    number = f", round {run.round}" + (f" of {run.rounds}" if run.rounds else "")
    where = run.stage if run.over or run.stage in ("", "greeting", "evaluate") else f"{run.stage}{number}"
    idle = "" if run.over or run.idle_s is None else f"; last sign of life: {ago(run.idle_s)}"
    state = Text(clean(f"{run.state}{': ' + run.headline if run.headline else ''}{idle}"))
    state.stylize("green" if run.state == "completed" else "yellow" if run.state != "running" else "")
    done = len(run.history)
    filled = _BAR * min(done, run.exchanges) // max(1, run.exchanges)
    traffic = f"{size(run.bytes_up)} up, {size(run.bytes_down)} down"
    return [
        Text(clean(f"study {run.study}, digest {run.digest[:16]}, in {run.folder}")),
        state,
        Text("━" * filled, style="green").append("━" * (_BAR - filled), style="dim"),
        Text(clean(f"{done} of {run.exchanges} exchanges{'; ' + where if where else ''}; {traffic}")),
        Text(clean(privacy(run))),
    ]


def _sites(run: Snapshot) -> Table:
    table = Table("site", "contact", "this exchange", "took part last in", "figure", "epsilon", "refusals")
    for site in run.sites:
        table.add_row(*(Text(clean(cell)) for cell in _cells(site, run.called)))
    return table


def _cells(site: SiteView, called: Called) -> tuple[str, ...]:
    contact = f"{site.contact}, heard of {ago(site.heard_s)}" if site.contact else "-"
    now = "-" if site.answered is None else "answered" if site.answered else "at work"
    round_ = "" if site.stage == "evaluate" else f", round {site.round}"
    last = f"{site.exchange}: {site.stage}{round_}" if site.exchange else "-"
    epsilon = "-" if site.epsilon is None else f"{site.epsilon:.3g}"
    refusals = ", ".join(f"{code} x{count}" for code, count in site.refusals.items())
    return site.name, contact, now, last, figures_of(site, called) or "-", epsilon, refusals or "-"


def figures_of(site: SiteView, called: Called) -> str:
    """The metric that is shown first of each task, or that the site's cases are too few to say."""
    found = []
    for task, values in site.metrics.items():
        known = _headline(values)
        if task in site.few:
            found.append((task, TOO_FEW))
        elif known is not None:
            found.append((task, f"{called[task][known[0]].title} {known[1]:.3f}"))
    return ", ".join(words if len(site.metrics) == 1 else f"{task} {words}" for task, words in found)


def _headline(values: Mapping[str, float | None]) -> tuple[str, float] | None:
    """The metric that comes first, if it is known; no other takes its place."""
    key, value = next(iter(values.items()), ("", None))
    return None if value is None else (key, value)


def _rounds(run: Snapshot) -> Table:
    table = Table("", "exchange")
    for row in run.history[-_ROUNDS:]:
        table.add_row(str(row.exchange), Text(clean(describe(row, run.called))))
    return table


def _figures(row: RoundView, called: Called) -> list[str]:
    shown = [(task, known) for task, values in row.metrics.items() if (known := _headline(values)) is not None]
    figures = [f"{task} {called[task][key].title} {value:.3f}" for task, (key, value) in shown]
    return figures + ([] if row.loss is None else [f"loss {row.loss:.3f}"])
