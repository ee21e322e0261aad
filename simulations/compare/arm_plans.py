"""Each arm of a question in full: who trains, its plan, and what it says otherwise than the arm it is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.stages.losses import Loss
from fedgraft.common.study.study import Study
from fedgraft.simulations.compare.amount import work_of
from fedgraft.simulations.compare.question import Arm, Question, changed
from fedgraft.simulations.compare.work import differences, in_words


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
        if arm.who == "nobody" or arm.shortcut
        else work_of(own, studies[against.name]),
        "control": arm.control,
        "model": plain["model"],
        "plan": [] if arm.shortcut else plain["plan"],
        "clusters": plain.get("clusters"),
        "differs": [] if arm is against else differs,
    }


def losses_left(question: Question, study: Study, studies: Mapping[str, Study]) -> list[str]:
    """A line for each loss that the study names and a preset's arm does without; `studies` are those of
    the arms, `study` what they are made from.

    A preset has the losses of its method, so that an arm's figure is that method's. Whoever reads only that the study
    names a loss would take it for theirs.
    """
    study = changed(study.model_dump(mode="json"), question.keys, f"question {question.name}")
    presets = {arm.name: _losses(studies[arm.name]) for arm in question.arms if arm.method and arm.name in studies}
    lines = []
    for loss in dict.fromkeys(_losses(study)):
        if without := [name for name, own in presets.items() if loss not in own]:
            what = in_words(loss.model_dump(mode="json"))
            lines.append(f"Without the study's loss ({what}): {', '.join(without)}. A preset has those of its method.")
    return lines


def _losses(study: Study) -> list[Loss]:
    return [loss for stage in study.plan if isinstance(stage.local, Gradient) for loss in stage.local.losses]


def _of_arm(question: Question, arm: Arm, against: Arm) -> Iterator[str]:
    """What an arm says beside its study."""
    if arm.shortcut is not None:
        yield f"answers: {arm.shortcut.replace('_', ' ')} of training cases, no model"
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
