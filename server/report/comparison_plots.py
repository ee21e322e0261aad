"""Plots of a comparison: differences with intervals, values by number of cases, models at other sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np

from fedgraft.server.report.history import (
    Row,
    mapping,
    number,
    sequence,
    text,
)
from fedgraft.server.report.plots import (
    COLOURS,
    FAINT,
    INK,
    STYLE,
    label,
    panel,
    svg,
)
from fedgraft.server.report.sureness import is_too_few

_LONGEST = 22
_SHARES = (0.4, 1.1)
"""Ends of the colours of shares, of which more is better: 1 is not the darkest, and chance is not white."""
_DARK = 0.64
"""Where on its way between the ends a colour is too dark for ink."""


def drawn(question: Row, metric: str, against: str, margin: float) -> Iterator[str]:
    """All plots that a question gives, as SVG elements."""
    rows = [mapping(row) for row in sequence(question.get("rows"))]
    name = text(question.get("name"))
    differences = [row for row in rows if number(mapping(row.get("difference")).get("value")) is not None]
    if differences:
        yield _forest(differences, f"{metric}, minus {against}", margin, name)
    yield _values(rows, f"macro {metric}", name)
    if len({number(row.get("cases")) for row in rows}) > 1:
        yield _curve(rows, f"macro {metric}", name)
    for matrix in sequence(question.get("matrices")):
        yield _matrix(mapping(matrix), metric, name, lower_is_better=question.get("better") == "lower")


@mpl.rc_context(STYLE)
def _forest(rows: Sequence[Row], axis: str, margin: float, name: str) -> str:
    figure, axes = panel(4.7, 0.7 + 0.26 * len(rows))
    axes.axvspan(-margin, margin, color="#eef1f4", zorder=0)
    axes.axvline(0, color=FAINT, linewidth=0.9, zorder=1)
    for place, row in enumerate(reversed(rows)):
        interval = mapping(row.get("difference"))
        value, low, high = (number(interval.get(key)) for key in ("value", "low", "high"))
        assert value is not None
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=1.6, zorder=3)
        axes.plot([value], [place], "o", color=COLOURS[0], markersize=4.5, zorder=4)
    _arms(axes, rows)
    axes.set(xlabel=axis)
    axes.set_title("Difference, 95 %; grey: would not matter")
    return svg(figure, f"Differences, {name}", f"forest{name}")


@mpl.rc_context(STYLE)
def _values(rows: Sequence[Row], axis: str, name: str) -> str:
    figure, axes = panel(4.7, 0.7 + 0.26 * len(rows))
    for place, row in enumerate(reversed(rows)):
        supports = mapping(row.get("support"))  # those with too few cases to say are in the table alone
        told = [one for site, one in mapping(row.get("sites")).items() if not is_too_few(mapping(supports.get(site)))]
        sites = [value for one in told if (value := number(one)) is not None]
        axes.plot(sites, [place] * len(sites), "o", color="#b9bec6", markersize=3.2, zorder=2)
        macro = mapping(row.get("macro"))
        value, low, high = (number(macro.get(key)) for key in ("value", "low", "high"))
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=INK, linewidth=1.6, zorder=3)
        if value is not None:
            axes.plot([value], [place], "D", color=INK, markersize=4.5, zorder=4)
    _arms(axes, rows)
    axes.set(xlabel=axis)
    axes.set_title("Mean over sites, 95 %; grey: single sites")
    return svg(figure, f"Values, {name}", f"values{name}")


@mpl.rc_context(STYLE)
def _curve(rows: Sequence[Row], axis: str, name: str) -> str:
    figure, axes = panel(4.7, 3.1)
    arms = list(dict.fromkeys(text(row.get("arm")) for row in rows))
    for place, arm in enumerate(arms):
        points = []
        for row in rows:
            macro, cases = mapping(row.get("macro")), number(row.get("cases"))
            value, low, high = (number(macro.get(key)) for key in ("value", "low", "high"))
            if text(row.get("arm")) == arm and cases is not None and value is not None:
                points.append((cases, value, value if low is None else low, value if high is None else high))
        if points:
            cases_, values, lows, highs = np.array(sorted(points)).T
            colour = COLOURS[place % len(COLOURS)]
            axes.fill_between(cases_, lows, highs, color=colour, alpha=0.12, linewidth=0)
            axes.plot(cases_, values, "-o", color=colour, markersize=4, label=label(arm, _LONGEST))
    few = any(row.get("per_class") is True for row in rows)
    axes.set(xlabel="labelled cases of each class" if few else "training cases per site", ylabel=axis)
    axes.legend(frameon=False)
    return svg(figure, f"By number of cases, {name}", f"curve{name}")


@mpl.rc_context(STYLE)
def _matrix(matrix: Row, metric: str, name: str, *, lower_is_better: bool) -> str:
    rows = {model: mapping(own) for model, own in mapping(matrix.get("values")).items()}
    sites = list(dict.fromkeys(site for own in rows.values() for site in own))
    table = np.array(
        [[np.nan if (v := number(own.get(site))) is None else v for site in sites] for own in rows.values()]
    )
    figure, axes = panel(4.0, 3.4)
    low, high = _ends(table, lower_is_better=lower_is_better)
    axes.imshow(table, cmap="Blues_r" if lower_is_better else "Blues", vmin=low, vmax=high)
    axes.grid(False)
    for (model, site), value in np.ndenumerate(table) if len(sites) <= 10 else ():
        if np.isfinite(value):
            shown = f"{value:.2f}".removeprefix("0" if len(sites) > 6 else "")  # or ten would touch each other
            dark = (high - value if lower_is_better else value - low) > _DARK * (high - low)
            axes.text(site, model, shown, ha="center", va="center", color="white" if dark else INK)
    axes.set_xticks(range(len(sites)), [label(site, 10) for site in sites], rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), [label(model, 10) for model in rows])
    cases = number(matrix.get("cases"))
    axes.set(xlabel="tested at", ylabel="trained at")
    axes.set_title(f"{text(matrix.get('arm'))}: {metric}" + (f", {int(cases)} cases" if cases else ""))
    return svg(figure, f"Models at other sites, {name}", f"matrix{name}{int(cases or 0)}")


def _ends(table: np.ndarray, *, lower_is_better: bool) -> tuple[float, float]:
    """Between which values colours go: those of shares, or a little past the values that are there."""
    known = table[np.isfinite(table)]
    if not len(known) or (not lower_is_better and known.min() >= 0 and known.max() <= 1):
        return _SHARES
    spare = 0.2 * (known.max() - known.min()) or 1.0
    return float(known.min() - spare), float(known.max() + spare)


def _arms(axes: mpl.axes.Axes, rows: Sequence[Row]) -> None:
    names = []
    for row in reversed(rows):
        cases = number(row.get("cases"))
        names.append(label(text(row.get("arm")), _LONGEST) + (f", {int(cases)}" if cases else ""))
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(axis="y", visible=False)
