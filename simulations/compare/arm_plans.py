"""Each arm of a question in full: who trains, its plan, and what it says otherwise than the arm it is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedgraft.common.study.study import Study
from fedgraft.simulations.compare.amount import work_of
from fedgraft.simulations.compare.question import Arm, Question
from fedgraft.simulations.compare.work import differences


def arm_plans(question: Question, studies: Mapping[str, Study]) -> list[dict[str, Any]]:
    """By arm, in the question's order; `studies` are those that were run, by arm."""
    there = {arm.name: arm for arm in question.arms}
    against = there[question.against]
    return [_arm_plan(question, arm, against, studies) for arm in question.arms]


def _arm_plan(question: Question, arm: Arm, against: Arm, studies: Mapping[str, Study]) -> dict[str, Any]:
    own = studies[arm.name]
    plain = own.model_dump(mode="json")
    differs = [*_of_arm(question, arm, against), *differences(own, studies[against.name])]
    return {
        "arm": arm.name,
        "who": arm.who,
        "labels": arm.labels,
        "fit": arm.fit.model_dump(mode="json") if question.shots else None,
        "work": {"words": "nobody trains", "times": 0.0}
        if arm.who == "nobody"
        else work_of(own, studies[against.name]),
        "control": arm.control,
        "model": plain["model"],
        "plan": plain["plan"],
        "clusters": plain.get("clusters"),
        "differs": [] if arm is against else differs,
    }


def _of_arm(question: Question, arm: Arm, against: Arm) -> Iterator[str]:
    """What an arm says beside its study."""
    keys = ("who", "labels", *(("fit",) if question.shots else ()))
    for key in keys:
        one, other = getattr(arm, key), getattr(against, key)
        if one == other:
            continue
        if isinstance(one, str):
            yield f"{key}: {one} (not {other})"
        else:
            mine, theirs = one.model_dump(mode="json"), other.model_dump(mode="json")
            yield from (f"{key}.{k}: {mine[k]} (not {theirs[k]})" for k in mine if mine[k] != theirs[k])
