"""The page of a comparison: every question with its table, its expectations and its plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from markupsafe import Markup

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import read_json, write_atomic
from fedgraft.common.metrics.support import TOO_FEW
from fedgraft.server.report import comparison_plots as plots
from fedgraft.server.report.comparison_remarks import remarks
from fedgraft.server.report.history import (
    Row,
    mapping,
    number,
    sequence,
    text,
)
from fedgraft.server.report.page import template
from fedgraft.server.report.sureness import is_too_few, sides
from fedgraft.server.report.tables import (
    NONE,
    ReportTable,
    TableLine,
    duration,
    whole,
)


@dataclass(frozen=True)
class QuestionView:
    """One question of a comparison, with its tables and plots ready for the page."""

    name: str
    asks: str
    how: str
    table: ReportTable
    expected: ReportTable
    arms: ReportTable
    plans: tuple[tuple[str, str], ...]
    """By arm its whole model and plan, as YAML."""
    sites: ReportTable
    gains: ReportTable
    """By arm what each site gained over training alone."""
    drawn: tuple[Markup, ...]
    troubles: tuple[str, ...]
    remarks: tuple[str, ...]


def write_comparison_page(folder: Path) -> Path:
    """Write `compare.html` beside a folder's `compare.json`; InputError if that is absent or damaged."""
    if not (folder / "compare.json").is_file():
        raise InputError(f"{folder}: there is no compare.json.", fix="Write one with `fedgraft compare`.")
    found = mapping(read_json(folder / "compare.json"))
    questions = [_view(mapping(row)) for row in sequence(found.get("questions"))]
    expected = [
        mapping(one) for row in sequence(found.get("questions")) for one in sequence(mapping(row).get("expectations"))
    ]
    reached = sum(one.get("reached") is True for one in expected)
    undecided = sum(one.get("reached") is None for one in expected)
    page = template("compare.html.jinja").render(
        study=text(found.get("study")),
        synthetic=found.get("synthetic") is True,
        seeds=int(number(found.get("seeds")) or 0),
        seconds=duration(number(found.get("seconds")) or 0.0),
        quick=found.get("quick") is True,
        expected=len(expected),
        reached=reached,
        undecided=undecided,
        questions=questions,
    )
    write_atomic(folder / "compare.html", page.encode("utf-8"))
    return folder / "compare.html"


def _view(question: Row) -> QuestionView:
    rows = [mapping(row) for row in sequence(question.get("rows"))]
    metric = text(question.get("title"))
    against, margin = text(question.get("against")), number(question.get("margin")) or 0.0
    troubles = tuple(f"{text(row.get('arm'))}: {text(one)}" for row in rows for one in sequence(row.get("troubles")))
    return QuestionView(
        text(question.get("name")),
        text(question.get("asks")),
        f"{metric} on {text(question.get('scenario')) or 'the hospitals given'}, task {text(question.get('task'))}; "
        f"{int(number(question.get('replicates')) or 0)} paired replicates per arm; differences of up to {margin:g} "
        "would not matter.",
        ReportTable(
            ("arm", "verdict", f"macro {metric}", "95 %", "worst site", f"minus {against}", "95 %", "p (Holm)", "time"),
            tuple(_line(row) for row in rows),
            words=2,
        ),
        ReportTable(
            ("expected", "wanted", "verdict", "found", "95 %"),
            tuple(_expected(mapping(one), question) for one in sequence(question.get("expectations"))),
            words=3,
        ),
        _arms(question, against),
        tuple(_plan(mapping(one)) for one in sequence(question.get("arms"))),
        _sites(rows, text(question.get("kind"))),
        _gains(rows, text(question.get("alone"))),
        tuple(Markup(svg) for svg in plots.drawn(question, metric, against, margin)),
        troubles,
        tuple(remarks(question)),
    )


def _arms(question: Row, against: str) -> ReportTable:
    """Who trains in each arm, and all that it says otherwise than the arm that it is held against."""
    lines = []
    for one in map(mapping, sequence(question.get("arms"))):
        name = text(one.get("arm"))
        differs = "; ".join(map(text, sequence(one.get("differs"))))
        nothing = "all others are held against it" if name == against else "nothing"
        work = text(mapping(one.get("work")).get("words"))
        lines.append(TableLine((name, text(one.get("who")).replace("_", " "), work, differs or nothing), ""))
    return ReportTable(("arm", "who trains", "gradient work", f"differs from {against} in"), tuple(lines), words=4)


def _plan(one: Row) -> tuple[str, str]:
    content = {
        key: one.get(key) for key in ("who", "labels", "fit", "model", "plan", "clusters") if one.get(key) is not None
    }
    return text(one.get("arm")), yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _line(row: Row) -> TableLine:
    macro, worst, difference = (mapping(row.get(key)) for key in ("macro", "worst", "difference"))
    cells = (
        _name(row),
        text(difference.get("verdict")) or NONE,
        _figure(macro.get("value")),
        _range(macro),
        _figure(worst.get("value")),
        _figure(difference.get("value"), signed=True),
        _range(difference, signed=True),
        _figure(difference.get("holm")),
        duration(number(row.get("seconds")) or 0.0),
    )
    return TableLine(cells, "")


def _expected(one: Row, question: Row) -> TableLine:
    cases = number(one.get("cases"))
    name = f"{text(one.get('arm'))} over {text(one.get('over'))}" + (f", {int(cases)} cases" if cases else "")
    reached = one.get("reached")
    word = "reached" if reached is True else "missed" if reached is False else "one seed decides nothing"
    word += " on one seed alone" if reached is not None and question.get("seeds") == 1 else ""
    cells = (name, text(one.get("wanted")), word, _figure(one.get("value"), signed=True))
    return TableLine((*cells, _range(one, signed=True)), "failed" if reached is False else "")


def _sites(rows: Sequence[Row], kind: str) -> ReportTable:
    """By arm the values at each site, below the test cases that they are of: positives and negatives, or classes."""
    names = sorted({site for row in rows for site in mapping(row.get("sites"))})
    supports = [{site: mapping(mapping(row.get("support")).get(site)) for site in names} for row in rows]
    cases = (next((_cases(own[site], kind) for own in supports if own[site]), "") for site in names)
    lines = (
        TableLine((_name(row), *(_figure(mapping(row.get("sites")).get(site)) for site in names)), "") for row in rows
    )
    return ReportTable(("arm", *names), (TableLine(("test cases", *cases), "summary"), *lines), words=1)


def _gains(rows: Sequence[Row], alone: str) -> ReportTable:
    """By arm and site the gain over training alone, its interval, and what that decides; no rows where none does."""
    known = [(row, mapping(row.get("gains"))) for row in rows if mapping(row.get("gains"))]
    names = sorted({site for _, own in known for site in own})
    lines = (TableLine((_name(row), *(_gain(mapping(own.get(site))) for site in names)), "") for row, own in known)
    return ReportTable((f"arm minus {alone}", *names), tuple(lines), words=1)


def _gain(found: Row) -> str:
    if not found:
        return NONE
    return f"{_figure(found.get('value'), signed=True)}\n{_range(found, signed=True)}\n{text(found.get('verdict'))}"


def _cases(support: Row, kind: str) -> str:
    few = f"\n{TOO_FEW}" if is_too_few(support) else ""
    return f"{whole(support.get('n'))}\n{sides(support, kind)}{few}"


def _name(row: Row) -> str:
    cases = number(row.get("cases"))
    what = "of each class" if row.get("per_class") is True else "cases"
    return text(row.get("arm")) + (f", {int(cases)} {what}" if cases else "")


def _figure(value: object, *, signed: bool = False) -> str:
    known = number(value)
    return NONE if known is None else f"{known:+.3f}" if signed else f"{known:.3f}"


def _range(interval: Row, *, signed: bool = False) -> str:
    low, high = (_figure(interval.get(key), signed=signed) for key in ("low", "high"))
    return NONE if low == NONE else f"{low} to {high}"
