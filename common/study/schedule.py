"""What each exchange of a study is: derived from the study alone, so that coordinator and sites count alike.

A site does not take a coordinator's word for where in the study it is; it looks the exchange up here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedgraft.common.study.inputs import Split
from fedgraft.common.study.plan import Stage, Statistics
from fedgraft.common.study.study import Study

MEASURE = Stage(name="evaluate", local=Statistics())
"""What an evaluation belongs to in a study that only measures."""


@dataclass(frozen=True)
class Step:
    """One exchange of the plan: the `round`-th (from 1) of a stage, or the evaluation at the end (`work` False).

    `exchange` counts from 1 over the whole study; `stage` is an index into its plan. Where the study asks for an
    operating point or conformal sets there are two evaluations: of validation cases, and of test cases.
    """

    exchange: int
    stage: int
    round: int
    work: bool


def schedule(study: Study) -> Iterator[Step]:
    """All exchanges of a study, in order."""
    exchange = 0
    for index, stage in enumerate(study.plan):
        for number in range(1, stage.rounds + 1):
            exchange += 1
            yield Step(exchange, index, number, work=True)
    for more in range(1, _evaluations(study) + 1):
        yield _evaluation(study, exchange + more)


def step_at(study: Study, exchange: int) -> Step | None:
    """The step with that number; None if the study has none."""
    left = exchange
    for index, stage in enumerate(study.plan):
        if 1 <= left <= stage.rounds:
            return Step(exchange, index, left, work=True)
        left -= stage.rounds
    if not 1 <= left <= _evaluations(study):
        return None
    return _evaluation(study, exchange)


def stage_of(study: Study, step: Step) -> Stage:
    """The stage that a step belongs to; of a study that only measures, one in which nothing is done or sent."""
    return study.plan[step.stage] if study.plan else MEASURE


def _evaluation(study: Study, exchange: int) -> Step:
    """An evaluation belongs to the last round of the last stage, if there is any."""
    last = max(0, len(study.plan) - 1)
    return Step(exchange, last, study.plan[last].rounds if study.plan else 1, work=False)


def last_exchange(study: Study) -> int:
    """The number of the last exchange of a study, which evaluates the test cases."""
    return sum(stage.rounds for stage in study.plan) + _evaluations(study)


def _evaluations(study: Study) -> int:
    return 2 if study.evaluate.chosen_on_val else 1


def split_at(study: Study, step: Step) -> Split | None:
    """The cases on which a hospital evaluates what comes with this step; None if it does not."""
    if not step.work:
        return "test" if step.exchange == last_exchange(study) else "val"
    every = study.evaluate.every
    return study.evaluate.split if every and (step.exchange - 1) % every == 0 else None


def place_before(study: Study, step: Step) -> int | None:
    """The place in the plan of the stage whose result comes with this step, and is evaluated; None for the start.

    What sites train for themselves, and use only where it is better, is passed over: figures of it would say where.
    """
    place = step.stage if step.round > 1 or not step.work else step.stage - 1
    places = (at for at in range(min(place, len(study.plan) - 1), -1, -1) if study.plan[at].personalise != "best")
    return next(places, None)


def stage_before(study: Study, step: Step) -> Stage | None:
    """The stage at `place_before`; None before the first round."""
    place = place_before(study, step)
    return None if place is None else study.plan[place]
