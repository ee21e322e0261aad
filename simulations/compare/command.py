"""`fedgraft compare`: run every arm on every seed, and say what may be concluded."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Column, Table

from fedgraft.common.base.console.terminal import (
    ERR,
    OUT,
    figure,
    say,
)
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.environment import environment
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import make_folder, make_private, read_json, write_atomic, write_json
from fedgraft.common.checks.check_plugins import read_pinned
from fedgraft.common.config.config_files import describe
from fedgraft.common.config.suggest import instead
from fedgraft.common.study.inputs import InputSpec
from fedgraft.common.study.study import Study, locate
from fedgraft.server.report import build_comparison_page
from fedgraft.server.report.comparison_remarks import remarks
from fedgraft.simulations.compare.arm_plans import losses_left
from fedgraft.simulations.compare.question import Question, Questions, changed, read_comparison
from fedgraft.simulations.compare.result import answered, groups, lines
from fedgraft.simulations.compare.running.cells import Cell, cells, run
from fedgraft.simulations.compare.running.progress import Tell, time_left
from fedgraft.simulations.compare.running.tracking import ComparisonTrackers
from fedgraft.simulations.engines.run import check_hospitals
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import Scenario, find_scenario
from fedgraft.simulations.real_data.places import AbsentData

SCHEMA = 1


@dataclass(frozen=True)
class CompareRequest:
    """What was asked of `fedgraft compare`."""

    study: Path
    out: Path | None
    scenario: str | Scenario | None
    overrides: tuple[str, ...]
    seeds: int | None
    arms: tuple[str, ...]
    only: tuple[str, ...]
    quick: bool
    workers: int
    threads: int
    cases: tuple[int, ...] = ()
    """In place of the numbers of training cases that questions are repeated with; those without such stay so."""
    track: tuple[str, ...] = ()


def compare(asked: CompareRequest, *, as_json: bool) -> None:
    """Carry out a comparison, or what is left of it, and show it."""
    console = ERR if as_json else OUT

    def tell(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    study, shipped = read_pinned(asked.study, asked.overrides)
    out = carry_out(study, read_comparison(locate(asked.study)), shipped, asked, tell)
    if as_json:
        sys.stdout.write(json.dumps(read_json(out / "compare.json") | {"run": str(out)}) + "\n")
    else:
        show(out)


def carry_out(
    study: Study,
    comparison: Questions,
    shipped: str | None,
    asked: CompareRequest,
    tell: Tell,
    warn: Tell | None = None,
) -> Path:
    """Carry out what is left of a comparison, and return its folder with `compare.json`, a table and a page in it.

    `shipped` is the scenario that the study's file names; `warn` hears of trackers that fail, `tell` if absent.
    InputError for what cannot be compared.
    """
    started = time.monotonic()
    left = [one.name for one in comparison.questions if one.by_name and not asked.only]
    comparison = asked_for(comparison, asked)
    if left and not asked.arms:
        tell(f"Left for --only NAME, since they are long: {', '.join(left)}")
    out = asked.out or Path("runs") / f"{study.name}-compare"
    demand_place(out)
    to = ComparisonTrackers(asked.track, out, warn or tell)
    todo, where, synthetic = _cells(study, comparison, asked, shipped)
    questions = [one for one in comparison.questions if one.name in todo]
    left_out = {
        one.name: losses_left(one, study, {cell.arm: cell.job.study for cell in todo[one.name]}) for one in questions
    }
    for line in dict.fromkeys(line for own in left_out.values() for line in own):
        tell(line)
    _take(out, study)
    out.chmod(0o700)
    facts = {
        "schema": SCHEMA,
        "study": study.name,
        "study_digest": study.digest,
        "synthetic": synthetic,
        "seeds": _seeds(comparison, asked),
        "quick": asked.quick,
        "environment": environment(study.seed, "compare"),
    }
    with to.concluding(study):
        _run([cell for own in todo.values() for cell in own], out / "cells", (asked, to), tell)
        found = {one.name: groups(todo[one.name], out / "cells") for one in questions}
        said = [
            answered(one, found[one.name]) | {"scenario": where[one.name], "losses_left": left_out[one.name]}
            for one in questions
        ]
        rows = [line for one in questions for line in lines(one, found[one.name])]
        write_json(out / "compare.json", facts | {"questions": said, "seconds": round(time.monotonic() - started, 1)})
        write_atomic(out / "compare.csv", _csv(rows))
        build_comparison_page(out)
    make_private(out)
    return out


def _run(todo: Sequence[Cell], out: Path, asked: tuple[CompareRequest, ComparisonTrackers], tell: Tell) -> None:
    """Run what is left, and say how far it is: before the first cell, after each, and between while none ends."""
    (request, to), started, already = asked, time.monotonic(), None
    tell(f"{len({cell.digest for cell in todo})} runs, {request.workers} at a time; what is there is not run again")
    for cell, done, of in run(todo, out, request.workers, request.threads, tell):
        already = done - 1 if already is None else already
        tell(f"{done}/{of} {cell.words()}{time_left(done, of, started, already, request.workers)}")
        to.done(cell, out)
    for cell in todo:  # those that were there, and arms that others' runs stand for
        to.done(cell, out)


def asked_for(comparison: Questions, asked: CompareRequest) -> Questions:
    """The questions that are asked for; with other arms, if some are named."""
    unknown = sorted(set(asked.only) - {question.name for question in comparison.questions})
    if unknown:
        known = [question.name for question in comparison.questions]
        raise InputError(f"No question is called {unknown[0]}{instead(unknown[0], known)}.")
    questions = [one for one in comparison.questions if (one.name in asked.only if asked.only else not one.by_name)]
    if asked.cases:
        questions = [_at(one, asked.cases) if one.cases else one for one in questions]
    if asked.arms:
        against, named = asked.arms[0], {arm.name: arm for arm in questions[0].arms}
        fields = questions[0].model_dump(exclude={"arms", "against", "expect"}, by_alias=True)
        arms = [named.get(name, name) for name in asked.arms]
        try:
            questions = [Question.model_validate(fields | {"arms": arms, "against": against})]
        except ValidationError as error:
            raise InputError("--arm: " + "; ".join(describe(error))) from None
    return comparison.model_copy(update={"questions": tuple(questions)})


def _at(question: Question, cases: tuple[int, ...]) -> Question:
    """The question at other numbers of cases, with what is expected at these, or at any."""
    kept = tuple(one for one in question.expect if one.cases is None or one.cases in cases)
    return question.model_copy(update={"cases": cases, "expect": kept})


def _cells(
    study: Study, comparison: Questions, asked: CompareRequest, shipped: str | None
) -> tuple[dict[str, list[Cell]], dict[str, str], bool]:
    """By question its cells, all of them checked, and its scenario; and whether any hospital is made up.

    A question whose data are not on this machine is left out with a word, unless it is asked for by name or alone.
    """
    found, where = dict[str, list[Cell]](), dict[str, str]()
    synthetic, looked_at = False, list[tuple[Scenario, InputSpec]]()
    for question in comparison.questions:
        name = asked.scenario or question.scenario or shipped
        if name is None:
            raise InputError(f"{asked.study} names no scenario.", fix="Say which hospitals to use: --scenario FILE.")
        base = locate(asked.study).parent if asked.scenario is None else Path()
        scenario = find_scenario(name, base)
        try:
            hospitals, seeds = hospitals_of(scenario), _seeds(comparison, asked, question)
        except AbsentData as absent:
            if asked.only or (question is comparison.questions[-1] and not found):
                raise
            ERR.print(f"Question {question.name} is left out. {absent}", highlight=False, markup=False)
            continue
        synthetic, where[question.name] = synthetic or scenario.synthetic, scenario.name
        asks = changed(study.model_dump(mode="json"), question.keys, f"{asked.study}, question {question.name}")
        if (scenario, asks.input) not in looked_at:  # another input reads other columns
            looked_at.append((scenario, asks.input))
            check_hospitals(asks, hospitals, lambda text: ERR.print(text, highlight=False, markup=False))
        found[question.name] = cells(study, question, hospitals, seeds, str(asked.study))
    return found, where, synthetic


def _seeds(comparison: Questions, asked: CompareRequest, question: Question | None = None) -> int:
    """How often everything is repeated, or one question: what was asked for goes before what the files say."""
    if asked.seeds or asked.quick:
        return asked.seeds or comparison.quick
    return (question.seeds if question else None) or comparison.seeds


def _take(out: Path, study: Study) -> None:
    """Make the folder this study's, or see that it is; cells of another study would only lie about in it."""
    mark = out / "study.yaml"
    if out.exists() and any(out.iterdir()) and not mark.is_file():
        raise InputError(f"{out} is not empty, and holds no comparison.", fix="Choose another --out.")
    if mark.is_file() and (out / "history.jsonl").exists():
        raise InputError(f"{out} holds a run.", fix="Choose another --out.")
    make_folder(out)
    write_atomic(mark, study.to_yaml().encode())


def show(folder: Path) -> None:
    """A comparison that was carried out, once more."""
    _show(read_json(folder / "compare.json"), folder / "compare.html")


def _show(result: dict[str, Any], page: Path) -> None:
    for question in result["questions"]:
        metric = question["title"]
        table = Table(
            Column("arm", no_wrap=True),  # a name that is cut is not found again
            f"macro {metric}",
            "95 %",
            "worst site",
            f"minus {question['against']}",
            "95 %",
            "p (Holm)",
            "verdict",
            title=f"{question['name']}: {question['asks']}" if question["asks"] else question["name"],
        )
        for row in question["rows"]:
            table.add_row(*_cells_of(row))
        OUT.print(table)
        for one in question["expectations"]:
            word = {True: "reached", False: "MISSED", None: "not decided by one seed"}[one["reached"]]
            alone = ", on one seed alone" if question["seeds"] < 2 and one["reached"] is not None else ""
            cases = f" at {one['cases']} cases" if one["cases"] else ""
            say(
                f"  {word}: {one['arm']} - {one['over']}{cases} {one['value']:+.3f} "
                f"[{_signed(one['low'])}, {_signed(one['high'])}], wanted {one['wanted']}{alone}"
            )
        _show_gains(question)
        for line in remarks(question):
            say(f"  {line}")
        for row in question["rows"]:
            for trouble in row["troubles"]:
                say(f"  {row['arm']}: {trouble}")
    seeds = result["seeds"]
    say(f"{seeds} seed(s), {result['seconds']:.0f} s. Intervals: bootstrap over patients and seeds; p: Holm.")
    if seeds == 1:
        say("One seed decides nothing: what another order of batches would change is in no interval here.")
    elif seeds < 3:
        say("With fewer than three seeds the intervals say little of other seeds.")
    say(f"Report: {page}")
    if result["synthetic"]:
        say("Phantoms prove the machinery, not clinical benefit.")


def _show_gains(question: dict[str, Any]) -> None:
    """By arm what joining gained each site over training alone, where an arm does that."""
    known = [row for row in question["rows"] if row.get("gains")]
    names = sorted({site for row in known for site in row["gains"]})
    if not names:
        return
    table = Table(
        Column("arm", no_wrap=True), *names, title=f"What joining gained each site: minus {question['alone']}"
    )
    for row in known:
        own = [row["gains"].get(site) for site in names]
        cells = [
            f"{_signed(one['value'])}\n{_signed(one['low'])}, {_signed(one['high'])}\n{one['verdict']}" if one else "-"
            for one in own
        ]
        table.add_row(_cells_of(row)[0], *cells)
    OUT.print(table)


def _cells_of(row: dict[str, Any]) -> Sequence[str]:
    what = "of each class" if row["per_class"] else "cases"
    name = f"{row['arm']}, {row['cases']} {what}" if row["cases"] else row["arm"]
    macro, worst, difference = row["macro"] or {}, row["worst"] or {}, row["difference"]
    cells = [name, figure(macro.get("value")), _range(macro), figure(worst.get("value"))]
    if difference is None:
        return (*cells, "", "", "", "")
    return (
        *cells,
        _signed(difference["value"]),
        f"{_signed(difference['low'])}, {_signed(difference['high'])}",
        figure(difference["holm"]),
        difference["verdict"],
    )


def _range(interval: dict[str, Any]) -> str:
    return f"{figure(interval.get('low'))}, {figure(interval.get('high'))}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))  # tasks of other kinds have other metrics
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
