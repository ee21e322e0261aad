"""From answers to what is said: values per site, macro mean, worst site, differences with intervals, expectations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.base.errors import RunError
from fedgraft.common.metrics.plugged import metric_named
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.support import TOO_FEW, Support, support
from fedgraft.common.study.study import Study
from fedgraft.simulations.compare.amount import seeds_to_decide
from fedgraft.simulations.compare.arm_plans import arm_plans
from fedgraft.simulations.compare.bootstrap import (
    Interval,
    Replicate,
    across,
    draw_patients,
    holm,
    metric,
    over_replicates,
    verdict,
)
from fedgraft.simulations.compare.comparable import OWN
from fedgraft.simulations.compare.gains import alone_in, gains
from fedgraft.simulations.compare.paired import Drawn, against_control, differences
from fedgraft.simulations.compare.question import Expectation, Question
from fedgraft.simulations.compare.running.cells import Cell, CellOutcome, outcome
from fedgraft.simulations.compare.running.models import MERGED, Answers, Found


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


def answered(question: Question, study: Study, own: Sequence[Group]) -> dict[str, Any]:
    """A question's result as plain values. RunError if arms were not tested on the same patients."""
    task = question.task or study.tasks[0].name
    floor = study.evaluate.floor
    drawn = {(group.arm, group.cases): _draw(group, task, question.metric, floor) for group in own}
    seeds, alone = max(group.seeds for group in own), alone_in(question)
    controls = [arm.name for arm in question.arms if arm.control]
    rows = []
    for cases in question.sizes:
        here = [group for group in own if group.cases == cases]
        reference = drawn[question.against, cases]
        apart = {
            group.arm: differences(drawn[group.arm, cases], reference)
            for group in here
            if group.arm != question.against
        }
        if not question.shots and not all(apart.values()):
            raise RunError("Two arms have no site in common.", fix="See which sites failed in compare.csv.")
        others = {arm: over_replicates(own) for arm, own in apart.items() if own}
        adjusted = holm({arm: interval.p for arm, interval in others.items()})
        by_arm = {group.arm: drawn[group.arm, cases] for group in here}
        for group in here:
            row = _row(group, task, drawn[group.arm, cases], question, floor)
            row["control"] = against_control(group.arm, controls, by_arm, question.metric)
            difference = others.get(group.arm)
            if difference is not None:
                row["difference"] = _plain(difference) | {
                    "holm": adjusted[group.arm],
                    "verdict": verdict(
                        difference,
                        adjusted[group.arm],
                        question.margin,
                        seeds=group.seeds,
                        lower_is_better=metric_named(question.metric).better == "lower",
                    )
                    if row["enough"]
                    else TOO_FEW,
                    "seeds_to_decide": seeds_to_decide(
                        (difference.high - difference.low) / 2, group.seeds, question.margin
                    ),
                }
            if alone is not None and row["enough"]:
                row["gains"] = gains(question, group.arm, drawn[group.arm, cases], drawn[alone, cases])
            rows.append(row)
    return {
        "name": question.name,
        "asks": question.asks,
        "scenario": question.scenario,
        "task": task,
        "metric": question.metric,
        "against": question.against,
        "margin": question.margin,
        "alone": alone,
        "replicates": max(len(group.outcomes) for group in own),
        "seeds": seeds,
        "folds": question.folds,
        "arms": arm_plans(question, {group.arm: group.study for group in own}),
        "rows": rows,
        "matrices": [_matrix(group, task, question.metric) for group in own if _has_matrix(group)],
        "expectations": [one for each in question.expect for one in _expected(each, question, drawn, seeds)],
    }


def lines(question: Question, own: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """One line per arm, replicate, model and site, with all metrics: everything that the result is made of."""
    for group in own:
        for (seed, fold), ended in sorted(group.outcomes.items()):
            for model, sites in sorted(ended.found.items()):
                for site, tasks in sorted(sites.items()):
                    for task, answers in sorted(tasks.items()):
                        stated = _stated(question)
                        values = {name: _value(name, answers) if name in stated else None for name in _all(question)}
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
                            **values,
                        }


def _row(group: Group, task: str, drawn: Drawn, question: Question, floor: int) -> dict[str, Any]:
    macro = {replicate: across(list(sites.values()), "macro") for replicate, sites in drawn.items() if sites}
    # What is worst of a metric that should be low is not shown: sites with few cases would decide it.
    lowest = drawn if metric_named(question.metric).better == "higher" else {}
    worst = {replicate: across(list(sites.values()), "worst") for replicate, sites in lowest.items() if sites}
    counted = [_counted(ended.found, task) for ended in group.outcomes.values()]
    sites = {
        site: [own[site] for own in counted if site in own] for site in sorted({s for own in counted for s in own})
    }
    enough = all(any(_support(one).effective >= floor for one in own.values()) for own in counted)
    troubles = [f"seed {seed}: {text}" for (seed, _), one in sorted(group.outcomes.items()) for text in one.troubles]
    return {
        "arm": group.arm,
        "cases": group.cases,
        "macro": _plain(over_replicates(macro)) if macro else None,
        "worst": _plain(over_replicates(worst)) if worst else None,
        "per_class": bool(question.shots),
        "metrics": {name: _macro(group, task, name, floor) for name in _stated(question)},
        "sites": {site: _mean([_value(question.metric, one) for one in own]) for site, own in sites.items()},
        "support": {site: _support(own[0]).plain(floor) for site, own in sites.items()},
        "enough": enough,
        "by_replicate": [_number(float(macro[replicate][0])) for replicate in sorted(macro)],
        "difference": None,
        "gains": None,
        "models": {str(seed): one.model for (seed, _), one in sorted(group.outcomes.items()) if one.model},
        "seconds": round(float(np.median([one.seconds for one in group.outcomes.values()])), 1),
        "troubles": troubles,
    }


def _stated(question: Question) -> tuple[str, ...]:
    """Metrics that can be given: scores of several models, one for each draw of shots, make no AUROC."""
    return tuple(name for name in _all(question) if name != "auroc" or not question.shots)


def _all(question: Question) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*OWN, question.metric)))


def _draw(group: Group, task: str, name: str, floor: int) -> Drawn:
    return {
        replicate: {
            site: metric(name, answers, draw_patients(answers, replicate, site))
            for site, answers in _enough(_counted(ended.found, task), floor).items()
        }
        for replicate, ended in group.outcomes.items()
    }


def _counted(found: Found, task: str) -> dict[str, Answers]:
    """Each site's answers from the model that is meant for it: its own, or else the one that all share."""
    sites = {site for own in found.values() for site in own}
    best = {site: found.get(site, found.get(MERGED, {})).get(site) for site in sorted(sites)}
    return {site: own[task] for site, own in best.items() if own is not None}


def _enough(counted: dict[str, Answers], floor: int) -> dict[str, Answers]:
    """The sites whose test cases are enough to say something; all of them if no site's are, which the verdict says."""
    return {site: own for site, own in counted.items() if _support(own).effective >= floor} or counted


def _support(answers: Answers) -> Support:
    return support(ClassificationSums.of(answers.logits, answers.targets))


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


def _matrix(group: Group, task: str, name: str) -> dict[str, Any]:
    """Each site's own model at every site, the mean over replicates."""
    models = sorted({model for ended in group.outcomes.values() for model in ended.found})
    values = {
        model: {
            site: _mean(
                [
                    _value(name, ended.found[model][site][task])
                    for ended in group.outcomes.values()
                    if site in ended.found.get(model, {})
                ]
            )
            for site in models
        }
        for model in models
    }
    return {"arm": group.arm, "cases": group.cases, "values": values}


def _macro(group: Group, task: str, name: str, floor: int) -> float | None:
    means = [
        _mean([_value(name, answers) for answers in _enough(_counted(ended.found, task), floor).values()])
        for ended in group.outcomes.values()
    ]
    return _mean(means)


def _value(name: str, answers: Answers) -> float | None:
    return _number(float(metric(name, answers, np.ones((1, len(answers.targets))))[0]))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _plain(interval: Interval) -> dict[str, float | None]:
    return {key: _number(value) for key, value in vars(interval).items()}
