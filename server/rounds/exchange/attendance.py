"""Who should have taken part in a run and who did, from the first round to the end: what "completed" rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedgraft.common.protocol.instructions import Code, Greeting
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.rules import RoundRules
from fedgraft.common.study.schedule import MEASURE
from fedgraft.common.study.study import Study
from fedgraft.server.rounds.exchange.collect import headline

Row = Mapping[str, Any]

_LATE = "not there yet"


def asked_in(stage: Stage, greetings: Mapping[str, Greeting], *, work: bool) -> set[str]:
    """Of the sites that greeted, those that work in this stage, or that evaluate after it. Observers are not among."""
    hospitals = {site: g for site, g in greetings.items() if not g.observer and not g.source}
    sources = {site for site, g in greetings.items() if g.source}
    if work and stage.where == "source":
        return sources
    if not work or stage.where == "all":
        chosen = set(hospitals)
    else:
        chosen = {site for site, g in hospitals.items() if g.labelled == (stage.where == "labelled")}
    return chosen | (sources if work and stage.joint_lambda is not None else set())


@dataclass(frozen=True)
class Attendance:
    """Who took part. `status` is completed only if all sites that were asked did, in every round to the end.

    `enough` says whether that is a success all the same: the study itself says how few will do, and they were there.
    """

    status: str
    headline: str
    enough: bool


@dataclass(frozen=True)
class _Round:
    row: Row
    due: frozenset[str]
    present: frozenset[str]


def attendance(
    study: Study, greetings: Mapping[str, Greeting], absent: Mapping[str, Code], rows: Sequence[Row]
) -> Attendance:
    """What the rounds of a run, by its history, come to.

    `greetings` are of the sites that were asked from the start; `absent` are those of them that never greeted, or were
    refused.
    """
    rounds = [_round(study, greetings, absent, row) for row in rows]
    at_end = {site: Code(code) for site, code in rows[-1]["missing"].items()} | dict(absent)
    ways = list(_on_the_way(rounds, absent))
    asked = len(set(rows[-1]["sites_asked"]) | set(absent))
    line = headline(asked - len(at_end), asked, at_end)
    if ways and not at_end:
        line += " at the end"
    late = {way for way in ways if not at_end or _LATE in way}
    line += f"; missing on the way: {'; '.join(sorted(late))}" if late else ""
    whole = not at_end and not ways
    return Attendance("completed" if whole else "incomplete", line, whole or _allowed(study.rounds, rounds))


def _round(study: Study, greetings: Mapping[str, Greeting], absent: Mapping[str, Code], row: Row) -> _Round:
    stage, work = study.plan[row["stage_index"]] if study.plan else MEASURE, row["stage"] != "evaluate"
    due = asked_in(stage, greetings, work=work) | set(row["sites_asked"])
    if counts_absent(study, stage, work=work):
        due |= set(absent)
    return _Round(row, frozenset(due), frozenset(row["sites_aggregated"]))


def counts_absent(study: Study, stage: Stage, *, work: bool) -> bool:
    """Whether sites that never greeted would have been asked: of a stage for some of them alone nobody knows."""
    kinds = {other.where for other in study.plan} - {"all", "labelled"}
    return not work or stage.where == "all" or (stage.where == "labelled" and not kinds)


def _allowed(rules: RoundRules, rounds: Sequence[_Round]) -> bool:
    """Whether the study says how few will do, and at least so many were there in every round."""
    return rules.says_how_few and all(
        len(one.due & one.present) >= min(len(one.due), rules.needed(len(one.due))) for one in rounds
    )


def _on_the_way(rounds: Sequence[_Round], absent: Mapping[str, Code]) -> Iterator[str]:
    """Where sites were missing before the end, one phrase for each site, reason and stage."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for one in rounds[:-1]:
        missing = one.row["missing"]
        gone = {site: _LATE for site in one.due - one.present - absent.keys() if site not in missing} | missing
        for site, code in gone.items():
            found.setdefault((site, code, one.row["stage"]), []).append(one.row["round"])
    for (site, code, stage), numbers in found.items():
        yield f"{site}, {code} ({stage}, {_numbered(numbers)})"


def _numbered(numbers: Sequence[int]) -> str:
    """`round 2`, or `rounds 2 to 4, 7`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number <= spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans)
    return f"round{'s' if len(numbers) > 1 else ''} {text}"
