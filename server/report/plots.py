"""Plots as inline SVG. Sites are told apart by the page's own legend, so no site's name is ever drawn."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.metrics.table import SHARES
from fedgraft.server.report.history import Curves, Point, Span

Ranked = ClassificationSums | LabelSums
"""Sums that know how cases rank."""

MANY_SITES = 10
# Okabe and Ito's colours, told apart by all common kinds of colour vision, less the yellow that white swallows.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_BEST, _WORST, _OTHER, INK, FAINT = "#0072b2", "#d55e00", "#b9bec6", "#1b1f24", "#667080"
_MOST_POINTS = 160
FEW = 10
"""Reliability of fewer cases is drawn hollow."""
_MOST_NUMBERS = 12
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#e7eaee",
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedgraft",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Ink:
    """How a line is drawn: `dash` in SVG's words, "" for a full line."""

    colour: str
    dash: str = ""
    width: float = 1.3
    layer: int = 3


MEAN = Ink(INK, width=2.6, layer=5)


def inks(ranking: Mapping[str, float | None]) -> dict[str, Ink]:
    """An ink per site: each its own up to ten sites; beyond, the best and the worst stand out of grey."""
    sites = sorted(ranking)
    if len(sites) <= MANY_SITES:
        dashes = ("", "5 2")
        return {site: Ink(COLOURS[i % len(COLOURS)], dashes[i // len(COLOURS) % 2]) for i, site in enumerate(sites)}
    chosen = {site: Ink(_OTHER, width=0.8, layer=2) for site in sites}
    known = sorted((value, site) for site, value in ranking.items() if value is not None)
    if known:
        chosen[known[-1][1]] = Ink(_BEST, width=1.8, layer=4)
        chosen[known[0][1]] = Ink(_WORST, "5 2", width=1.8, layer=4)
    return chosen


@mpl.rc_context(STYLE)
def curve_plot(name: str, drawn: Curves, ink: Mapping[str, Ink], stages: Sequence[Span]) -> str:
    """One metric over the rounds: lines on the validation split, diamonds for the final model on the test split."""
    figure, axes = panel(4.7, 3.1)
    for site, points in drawn.sites.items():
        _line(axes, points, ink.get(site, Ink(_OTHER)))
    _line(axes, drawn.macro, MEAN)
    for site, points in drawn.test_sites.items():
        of_site = ink.get(site, Ink(_OTHER))
        axes.plot(*zip(*points, strict=True), "D", color=of_site.colour, markersize=3.5, zorder=of_site.layer)
    if drawn.test_macro:
        axes.plot(*zip(*drawn.test_macro, strict=True), "D", color=INK, markersize=6, zorder=6)
    _sensible(
        axes, name, [y for _, y in (*drawn.macro, *drawn.test_macro, *_all(drawn.sites), *_all(drawn.test_sites))]
    )
    _show_stages(axes, stages)
    axes.set(xlabel=f"rounds trained{_cases(drawn.cases)}", ylabel=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    last = max((x for x, _ in (*drawn.macro, *drawn.test_macro)), default=1) or 1  # nobody trained
    axes.set_xlim(-0.03 * last, 1.03 * last)
    return svg(figure, f"{name} by rounds trained", name)


@mpl.rc_context(STYLE)
def roc_plot(title: str, sums: Mapping[str, TaskSums], pooled: Ranked, row: int, ink: Any) -> str:
    """ROC curves of class (or label) `row` against the rest, thin per site and bold over all cases."""
    figure, axes = panel(3.4, 3.3)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
    ranked = {site: own for site, own in sums.items() if isinstance(own, Ranked)}
    for site, own in ranked.items():
        _line(axes, _thinned(own.roc(row)), ink.get(site, Ink(_OTHER)), markers=False)
    _line(axes, _thinned(pooled.roc(row)), MEAN, markers=False)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    negatives, positives = pooled.scores.totals()[row if len(pooled.scores.totals()) > 1 else 0].tolist()
    axes.text(0.98, 0.03, f"all cases: {positives} + {negatives} −", ha="right", color=FAINT, zorder=6)
    axes.set_title(label(title, 34))
    axes.set_aspect("equal")
    return svg(figure, f"ROC curves, {title}", f"roc{row}")


@mpl.rc_context(STYLE)
def survival_plot(name: str, ends: Sequence[float], curves: Mapping[str, Sequence[float | None]], unit: str) -> str:
    """Kaplan-Meier curves as steps at the ends of bins of time, told apart by their own legend."""
    figure, axes = panel(4.6, 3.0)
    for at, (group, left) in enumerate(curves.items()):
        known = [1.0, *(value for value in left if value is not None)]
        times = [0.0, *ends][: len(known)]
        style = "--" if at >= len(COLOURS) else "-"
        axes.step(times, known, style, where="post", color=COLOURS[at % len(COLOURS)], label=label(group, 20))
    axes.set(xlabel=f"time ({unit})", ylabel="left without the event", ylim=(-0.01, 1.01))
    axes.legend(frameon=False, loc="lower left")
    return svg(figure, f"Kaplan-Meier curves of {name}", f"survival{name}")


@mpl.rc_context(STYLE)
def confusion_plot(pooled: ClassificationSums, classes: Sequence[str]) -> str:
    """Cases by true and predicted class over all sites; shades are shares of the true class."""
    confusion = pooled.confusion
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = panel(3.4, 3.3)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.15)
    axes.grid(False)
    names = [label(name, 14) for name in classes]
    few = len(names) <= _MOST_NUMBERS
    turned = sum(map(len, names)) > 30
    axes.set_xticks(
        range(len(names)) if few else [], names if few else [], rotation=40 * turned, ha="right" if turned else "center"
    )
    axes.set_yticks(range(len(names)) if few else [], names if few else [])
    for (true, guess), count in np.ndenumerate(confusion) if few else ():
        colour = "white" if share[true, guess] > 0.6 else INK
        small = 8.5 if len(names) <= 6 else 6
        axes.text(guess, true, f"{count}", ha="center", va="center", color=colour, fontsize=small)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("Confusion, all cases")
    return svg(figure, "Confusion matrix", "confusion")


@mpl.rc_context(STYLE)
def reliability_plot(pooled: ClassificationSums) -> str:
    """How often predictions were right by how sure the model was, hollow where of few cases; bars show how many."""
    bins = pooled.reliability()
    figure, axes = panel(3.4, 3.3)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
    axes.bar(bins.confidence, bins.cases / max(1, pooled.n), width=0.05, color="#d5e3ef", zorder=2)
    axes.plot(bins.confidence, bins.accuracy, "-", color=_BEST, linewidth=1.6, zorder=4)
    few = bins.cases < FEW
    for chosen, inside, name in ((~few, _BEST, f"{FEW} cases or more"), (few, "white", f"fewer than {FEW}")):
        if chosen.any():
            x, y = bins.confidence[chosen], bins.accuracy[chosen]
            axes.plot(x, y, "o", color=_BEST, markerfacecolor=inside, markersize=4.5, zorder=5, label=name)
    axes.set(xlabel=f"confidence, of {pooled.n} cases", ylabel="share correct", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title("Reliability, all cases")
    axes.legend(frameon=False, loc="upper left")
    return svg(figure, "Reliability diagram", "reliability")


@mpl.rc_context(STYLE)
def bytes_plot(up: Sequence[Point], down: Sequence[Point]) -> str:
    """Bytes to and from all sites by exchange."""
    figure, axes = panel(4.7, 2.7)
    largest = max((value for _, value in (*up, *down)), default=0)
    unit, name = next(
        (u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")) if largest >= u or u == 1
    )
    for points, shift, colour, label in ((up, -0.2, _BEST, "up"), (down, 0.2, "#e69f00", "down")):
        # One collection: a bar each is a drawing of its own, and a run may have thousands of exchanges.
        bars = [[(x + shift + dx, y) for dx, y in _bar(value / unit)] for x, value in points]
        drawn = axes.add_collection(PolyCollection(bars, color=colour, linewidth=0, label=label, zorder=3))
        drawn.sticky_edges.y.append(0)
    axes.autoscale_view()
    axes.set(xlabel="exchange", ylabel=name)
    axes.set_title("Traffic, all sites")
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.98), borderaxespad=0)
    return svg(figure, "Bytes up and down by exchange", "bytes")


def _bar(height: float) -> list[Point]:
    """The corners of a bar, from its middle."""
    return [(-0.2, 0.0), (-0.2, height), (0.2, height), (0.2, 0.0)]


@mpl.rc_context(STYLE)
def seconds_plot(seconds: Mapping[str, float]) -> str:
    """Bars of the seconds of each phase of the run, as inline SVG."""
    figure, axes = panel(4.7, 2.7)
    names = list(seconds)[::-1]
    axes.barh(
        [label(name, 16) for name in names], [seconds[name] for name in names], color="#009e73", height=0.5, zorder=3
    )
    for place, name in enumerate(names):
        axes.annotate(f"{seconds[name]:.1f}", (seconds[name], place), (4, 0), textcoords="offset points", va="center")
    axes.margins(x=0.15)
    axes.set_ylim(-0.8, len(names) - 0.2)
    axes.set(xlabel="seconds")
    axes.set_title("Time by phase")
    axes.grid(axis="y", visible=False)
    return svg(figure, "Seconds by phase", "seconds")


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of that size in inches."""
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _line(axes: Axes, points: Iterable[Point], ink: Ink, *, markers: bool = True) -> None:
    x, y = np.array(list(points), np.float64).reshape(-1, 2).T
    style = (0, tuple(float(part) for part in ink.dash.split())) if ink.dash else "-"
    mark = "o" if markers and len(x) <= 15 else ""
    axes.plot(
        x,
        y,
        linestyle=style,
        color=ink.colour,
        linewidth=ink.width,
        marker=mark,
        markersize=ink.width + 1.2,
        zorder=ink.layer,
    )


def _all(sites: Mapping[str, Sequence[Point]]) -> list[Point]:
    return [point for points in sites.values() for point in points]


def _sensible(axes: Axes, name: str, values: Sequence[float]) -> None:
    """A share is drawn up to 1, from a half on or lower; what cannot be below 0 from 0 on: noise looks like noise."""
    if not values:
        return
    if name in SHARES:
        axes.set_ylim(max(0.0, min(0.5, min(values) - 0.03)), 1.01)
    elif min(values) >= 0:
        axes.set_ylim(0.0, max(values) * 1.06 or 1.0)


def _cases(counts: Mapping[str, int]) -> str:
    """How many cases a curve is of, for its axis."""
    words = {"val": "validation", "test": "test"}
    said = ", ".join(f"{counts[split]:,} {word}" for split, word in words.items() if split in counts)
    return f" ({said} cases)" if said else ""


def _show_stages(axes: Axes, stages: Sequence[Span]) -> None:
    if not 1 < len(stages) <= 8:
        return
    for place, stage in enumerate(stages):
        if place:
            axes.axvline(stage.first, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        height = 1.01 + 0.075 * (place % 2)
        axes.text(stage.first, height, label(stage.name, 18), transform=axes.get_xaxis_transform(), color=FAINT)


def _thinned(curve: tuple[np.ndarray, np.ndarray]) -> list[Point]:
    """Points of a step curve, without those inside straight runs, and not more than an eye can tell apart."""
    x, y = curve
    if len(x) > 2:
        corner = np.diff(x)[:-1] * np.diff(y)[1:] != np.diff(y)[:-1] * np.diff(x)[1:]
        kept = np.flatnonzero(np.concatenate([[True], corner, [True]]))
        if len(kept) > _MOST_POINTS:
            kept = kept[np.unique(np.linspace(0, len(kept) - 1, _MOST_POINTS).round().astype(int))]
        x, y = x[kept], y[kept]
    return list(zip(x.tolist(), y.tolist(), strict=True))


def label(name: str, longest: int) -> str:
    """A name that can be drawn; a long one loses its middle, since names in a row often start alike."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    if len(shown) <= longest:
        return shown
    return shown[: longest - longest // 2 - 1] + "…" + shown[-(longest // 2) :]


def svg(figure: Figure, alt: str, prefix: str) -> str:
    """The figure as an element of a page, as wide as its place, with ids of its own."""
    target = io.StringIO()
    metadata: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        # The browser has fonts for letters that the plotting library's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(target, format="svg", metadata=metadata)
    drawn = target.getvalue()
    head, body = drawn[drawn.index("<svg") :].split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head).replace(
        "<svg", f'<svg role="img" aria-label="{_attribute(alt)}"'
    )
    key = re.sub(r"\W", "", prefix)
    return head + ">" + re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{key}-", body)


def _attribute(value: str) -> str:
    return re.sub(r"[<>&\"']", " ", label(value, 80))
