"""A study all of whose tasks ask for classes: the attacks know answers of that kind alone."""

from __future__ import annotations

from fedgraft.common.checks.explain import check_study
from fedgraft.common.study.study import Study, parse_study

_CLASSES = ("no", "yes")


def as_classes(study: Study) -> tuple[Study, tuple[str, ...]]:
    """The study with two classes in place of every other kind of answer, and the names of these tasks.

    Plan, model and privacy stay: what is added to gradients does not depend on what is asked for. StudyError if a plan
    makes no sense with classes.
    """
    others = tuple(task.name for task in study.tasks if task.kind != "multiclass")
    if not others:
        return study, ()
    tasks = [
        {"name": task.name, "weight": task.weight, "classes": list(_CLASSES)}
        if task.name in others
        else task.model_dump()
        for task in study.tasks
    ]
    found = parse_study(study.model_dump(mode="json") | {"tasks": tasks}, f"{study.name}, with classes alone")
    check_study(found, study.name)
    return found, others
