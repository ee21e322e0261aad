"""What a comparison cannot ask: arms that cannot work, models that saw the test cases, patients tied together."""

from __future__ import annotations

from fedgraft.common.base.errors import InputError, StudyError, WeightsError
from fedgraft.common.checks.check import check
from fedgraft.common.checks.explain import check_study
from fedgraft.common.models.initialise import make_model
from fedgraft.common.models.provenance import finished
from fedgraft.common.study.clusters import ByLoss, BySums
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Segmentation, Task
from fedgraft.simulations.compare.measures.measure import Measure, measure
from fedgraft.simulations.compare.question import Arm, Question
from fedgraft.simulations.engines.run import Hospitals


def measured(question: Question, study: Study, where: str) -> Measure:
    """What decides the question. StudyError if the study does not ask that, or nothing could be told by it."""
    try:
        found = measure(study, question.task, question.metric, question.margin)
    except InputError as error:
        raise StudyError(where, [str(error)]) from None
    if question.shots and not isinstance(found.task, Task):
        raise StudyError(
            where, [f"shots: are so many cases of each class, and task {found.task.name} is {found.task.kind}"]
        )
    return found


def refuse_unmeasured(study: Study, arm: Arm, decides: Measure, where: str) -> None:
    """StudyError for an arm that asks the task in another way, or that leaves its masks to chance."""
    name = decides.task.name
    if study.tasks_by_name.get(name) != decides.task:
        raise StudyError(where, [f"tasks: the arm asks {name} in another way than the question, so nothing is alike"])
    if arm.shortcut is not None:
        if not isinstance(decides.task, Segmentation):
            raise StudyError(
                where, [f"shortcut: {arm.shortcut} answers masks, and {name} asks for none; thumbnail does"]
            )
        if arm.who not in ("alone", "pooled"):
            raise StudyError(where, [f"who: {arm.shortcut} is counted at each site, alone, or where all are pooled"])
        return
    trains = arm.who == "nobody" or any(isinstance(stage.local, Gradient) for stage in study.plan)
    if isinstance(decides.task, Segmentation) and not trains:
        raise StudyError(
            where,
            [f"plan: sums over features solve no masks, and {name} asks for one; use an arm that has gradient work"],
        )


def refuse_tied(question: Question, sites: Hospitals, where: str) -> None:
    """InputError for what would let one patient decide who else trains, or with which label."""
    capped = any(spec.train_cases is not None for spec in sites.cohorts.values())
    if (question.cases and not question.shots) or capped:
        raise InputError(
            f"{where}: an arm is private, and `cases` takes the first so many patients, which ties them together.",
            fix="Leave it out; fewer train with a smaller split.train in the question's `set`.",
        )
    if any(arm.labels == "shuffled" for arm in question.arms):
        raise InputError(
            f"{where}: an arm is private, and shuffled labels are those of other patients, which ties them together.",
            fix="Ask about shuffled labels in a question of their own, without a private arm.",
        )


def refuse_seen(study: Study, arm: Arm, question: Question, where: str) -> None:
    """StudyError for a finished model that may have learnt from cases that it would be tested on."""
    assert arm.weights is not None
    if question.folds and not arm.elsewhere:
        raise StudyError(where, ["weights: with folds every patient is tested, those too that the model learnt from"])
    try:
        finished(study, arm.weights, elsewhere=arm.elsewhere)
    except WeightsError as error:
        raise StudyError(where, [f"weights: {error}"]) from None


def check_arm(study: Study, source: str, arm: Arm) -> None:
    """Refuse what cannot work; base models are not there yet, and are looked at when they are."""
    if arm.who == "new_site" and isinstance(study.clusters, BySums | ByLoss):
        raise StudyError(
            source, ["clusters.by: a site that is new has sent nothing, so nobody knows its cluster; tell it"]
        )
    if not arm.base_models:
        check_study(study, source)
    elif faults := check(study, make_model(study).tags()):
        raise StudyError(source, faults)
