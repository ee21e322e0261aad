"""From answers to what is said: values per site, macro mean, worst site, differences with intervals, expectations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.base.errors import RunError
from fedgraft.common.metrics.support import TOO_FEW
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask
from fedgraft.simulations.compare.amount import seeds_to_decide
from fedgraft.simulations.compare.arm_plans import arm_plans
from fedgraft.simulations.compare.bootstrap import (
    Interval,
    Replicate,
    draw_patients,
    holm,
    macro,
    over_replicates,
    verdict,
    worst,
)
from fedgraft.simulations.compare.gains import alone_in, gains
from fedgraft.simulations.compare.measures.answers import MERGED, Answers
from fedgraft.simulations.compare.measures.measure import RANKED, Measure, measure
from fedgraft.simulations.compare.measures.sites import counted, enough, support_of
from fedgraft.simulations.compare.measures.under_weights import own_metrics, value_of
from fedgraft.simulations.compare.paired import Drawn, against_control, differences
from fedgraft.simulations.compare.question import Expectation, Question
from fedgraft.simulations.compare.running.cells import Cell, CellOutcome, outcome


@dataclass(frozen=True)
class Group:
    """One arm at one number of cases: its cells and what they ended with, paired by replicate."""

    arm: str
    cases: int | None
    outcomes: dict[Replicate, CellOutcome]
    study: Study
    """What was run, with the first seed."""

    @property
    def seeds(self) -> int:
        """How many seeds: the folds of one seed share its randomness, and are no more than one."""
        return len({seed for seed, _ in self.outcomes})


def groups(own: Sequence[Cell], out: Path) -> list[Group]:
    """The cells of a question, all of which were run, by arm and number of cases."""
    found: dict[tuple[str, int | None], Group] = {}
    for cell in own:
        group = found.setdefault((cell.arm, cell.cases), Group(cell.arm, cell.cases, {}, cell.job.study))
        group.outcomes[cell.replicate] = outcome(cell, out)
    return list(found.values())


def measured_by(question: Question, own: Sequence[Group]) -> Measure:
    """What decides a question; all its arms ask the task alike."""
    return measure(own[0].study, question.task, question.metric, question.margin)


def answered(question: Question, own: Sequence[Group]) -> dict[str, Any]:
    """A question's result as plain values. RunError if arms were not tested on the same patients."""
    decides, floor = measured_by(question, own), own[0].study.evaluate.floor
    drawn = {(group.arm, group.cases): _draw(group, decides, floor) for group in own}
    seeds = max(group.seeds for group in own)
    rows = [
        row
        for cases in question.sizes
        for row in _at([group for group in own if group.cases == cases], question, decides, drawn, floor)
    ]
    return {
        "name": question.name,
        "asks": question.asks,
        "scenario": question.scenario,
        "task": decides.task.name,
        "kind": decides.task.kind,
        "metric": decides.metric.name,
        "title": decides.title,
        "better": decides.metric.better,
        "against": question.against,
        "margin": decides.margin,
        "alone": alone_in(question),
        "replicates": max(len(group.outcomes) for group in own),
        "seeds": seeds,
        "folds": question.folds,
        "arms": arm_plans(question, {group.arm: group.study for group in own}),
        "rows": rows,
        "matrices": [_matrix(group, decides) for group in own if _has_matrix(group)],
        "expectations": [one for each in question.expect for one in _expected(each, question, drawn, seeds)],
    }


def _at(
    here: Sequence[Group],
    question: Question,
    decides: Measure,
    drawn: Mapping[tuple[str, int | None], Drawn],
    floor: int,
) -> Iterator[dict[str, Any]]:
    """The rows of all arms at one number of cases, each held against the one that is `against`."""
    by_arm = {group.arm: drawn[group.arm, group.cases] for group in here}
    reference, alone = by_arm[question.against], alone_in(question)
    apart = {arm: differences(own, reference) for arm, own in by_arm.items() if arm != question.against}
    if not question.shots and not all(apart.values()):
        raise RunError("Two arms have no site in common.", fix="See which sites failed in compare.csv.")
    others = {arm: over_replicates(own) for arm, own in apart.items() if own}
    adjusted = holm({arm: interval.p for arm, interval in others.items()})
    controls = [arm.name for arm in question.arms if arm.control]
    for group in here:
        row = _row(group, by_arm[group.arm], question, decides, floor)
        row["control"] = against_control(group.arm, controls, by_arm, decides)
        difference = others.get(group.arm)
        if difference is not None:
            said = verdict(difference, adjusted[group.arm], decides, seeds=group.seeds) if row["enough"] else TOO_FEW
            half = (difference.high - difference.low) / 2
            row["difference"] = _plain(difference) | {
                "holm": _number(adjusted[group.arm]),
                "verdict": said,
                "seeds_to_decide": seeds_to_decide(half, group.seeds, decides.margin),
            }
        if alone is not None and alone != group.arm and row["enough"]:
            row["gains"] = gains(decides, by_arm[group.arm], by_arm[alone])
        yield row


def lines(question: Question, own: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """One line per arm, replicate, model, site and task, with all its metrics: all that the result is made of."""
    decides = measured_by(question, own)
    for group in own:
        for (seed, fold), ended in sorted(group.outcomes.items()):
            for model, sites in sorted(ended.found.items()):
                for site, tasks in sorted(sites.items()):
                    for task, answers in sorted(tasks.items()):
                        asked = group.study.tasks_by_name[task]
                        yield {
                            "question": question.name,
                            "arm": group.arm,
                            "cases": group.cases,
                            "seed": seed,
                            "fold": fold if question.folds else None,
                            "model": "merged" if model == MERGED else model,
                            "site": site,
                            "task": task,
                            "n": len(answers.targets),
                            **_values(question, decides, asked, answers),
                        }


def _values(question: Question, decides: Measure, asked: AnyTask, answers: Answers) -> dict[str, float | None]:
    """Every metric of a task; of one that does not decide, fedgraft's own of its kind."""
    names = decides.all_metrics if asked == decides.task else tuple(own_metrics(asked))
    return {name: value_of(name, asked, answers) if _is_stated(name, question) else None for name in names}


def _row(group: Group, drawn: Drawn, question: Question, decides: Measure, floor: int) -> dict[str, Any]:
    means = {replicate: macro(list(sites.values())) for replicate, sites in drawn.items() if sites}
    lowest = {replicate: worst(list(sites.values()), decides) for replicate, sites in drawn.items() if sites}
    own_of = [counted(ended.found, decides.task.name) for ended in group.outcomes.values()]
    sites = {site: [own[site] for own in own_of if site in own] for site in sorted({s for own in own_of for s in own})}
    told = all(any(support_of(decides.task, one).effective >= floor for one in own.values()) for own in own_of)
    troubles = [f"seed {seed}: {text}" for (seed, _), one in sorted(group.outcomes.items()) for text in one.troubles]
    stated = [name for name in decides.all_metrics if _is_stated(name, question)]
    return {
        "arm": group.arm,
        "cases": group.cases,
        "macro": _plain(over_replicates(means)) if means else None,
        "worst": _plain(over_replicates(lowest)) if lowest else None,
        "per_class": bool(question.shots),
        "metrics": {name: _macro(group, decides, name, floor) for name in stated},
        "sites": {site: _mean([decides.value(one) for one in own]) for site, own in sites.items()},
        "support": {site: support_of(decides.task, own[0]).plain(floor) for site, own in sites.items()},
        "enough": told,
        "by_replicate": [_number(float(means[replicate][0])) for replicate in sorted(means)],
        "difference": None,
        "gains": None,
        "models": {str(seed): one.model for (seed, _), one in sorted(group.outcomes.items()) if one.model},
        "seconds": round(float(np.median([one.seconds for one in group.outcomes.values()])), 1),
        "troubles": troubles,
    }


def _is_stated(name: str, question: Question) -> bool:
    """Whether a metric can be given: scores of several models, one for each draw of shots, make no AUROC."""
    return not (question.shots and name in RANKED)


def _draw(group: Group, decides: Measure, floor: int) -> Drawn:
    return {
        replicate: {
            site: decides.of(answers, draw_patients(answers, replicate, site))
            for site, answers in enough(counted(ended.found, decides.task.name), decides.task, floor).items()
        }
        for replicate, ended in group.outcomes.items()
    }


def _expected(
    one: Expectation, question: Question, drawn: Mapping[tuple[str, int | None], Drawn], seeds: int
) -> Iterator[dict[str, Any]]:
    for cases in (one.cases,) if one.cases is not None else question.sizes:
        apart = differences(drawn[one.arm, cases], drawn[one.over, cases])
        if not apart:
            raise RunError(
                f"Question {question.name!r} expects something at {cases}, and no site has so many cases.",
                fix="Ask for fewer, or measure larger sites.",
            )
        found = over_replicates(apart)
        low, high = (found.low, found.high) if one.surely else (found.value, found.value)
        bounds = {
            f"at least {one.at_least}": one.at_least is None or low >= one.at_least,
            f"at most {one.at_most}": one.at_most is None or high <= one.at_most,
            f"within {one.within}": one.within is None or (low >= -one.within and high <= one.within),
        }
        wanted = [words for words in bounds if not words.endswith("None")]
        yield {
            "arm": one.arm,
            "over": one.over,
            "cases": cases,
            "wanted": " and ".join(wanted) + (", with its interval" if one.surely else ""),
            # The interval of one seed is over patients alone: nothing is sure of another seed.
            "reached": None if one.surely and seeds < 2 else all(bounds.values()),
            **_plain(found),
        }


def _has_matrix(group: Group) -> bool:
    return any(len(ended.found) > 1 and len(next(iter(ended.found.values()))) > 1 for ended in group.outcomes.values())


def _matrix(group: Group, decides: Measure) -> dict[str, Any]:
    """Each site's own model at every site, the mean over replicates."""
    models = sorted({model for ended in group.outcomes.values() for model in ended.found})
    values = {
        model: {
            site: _mean(
                [
                    decides.value(ended.found[model][site][decides.task.name])
                    for ended in group.outcomes.values()
                    if site in ended.found.get(model, {})
                ]
            )
            for site in models
        }
        for model in models
    }
    return {"arm": group.arm, "cases": group.cases, "values": values}


def _macro(group: Group, decides: Measure, name: str, floor: int) -> float | None:
    means = [
        _mean(
            [
                value_of(name, decides.task, answers)
                for answers in enough(counted(ended.found, decides.task.name), decides.task, floor).values()
            ]
        )
        for ended in group.outcomes.values()
    ]
    return _mean(means)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _plain(interval: Interval) -> dict[str, float | None]:
    return {key: _number(value) for key, value in vars(interval).items()}
