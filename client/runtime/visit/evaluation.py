"""What the model that came with an instruction says of the site's cases, and what policy lets out of that."""

from __future__ import annotations

from fedgraft.client.privacy.dp.units import units_of
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.release.metric_release import TestCases, release
from fedgraft.client.privacy.release.subgroup_release import CaseGroups
from fedgraft.client.runtime.visit.admission import Turn
from fedgraft.client.runtime.visit.workplace import Workplace
from fedgraft.client.training.model.evaluate import Predictions, predictions, summed
from fedgraft.common.metrics.plugged import with_more
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.protocol.instructions import Arrays, Code
from fedgraft.common.study.inputs import Split
from fedgraft.common.study.schedule import last_exchange


def evaluate(place: Workplace, turn: Turn, local_state: Arrays, *, shows: bool) -> dict[str, TaskSums]:
    """Metric sums by task, at the end by subgroup too; none if nothing is asked, or if policy shows none (`shows`).

    Under masks what is no number passes: a refusal would tell of this site alone what the sum hides.
    """
    if turn.evaluate is None or not shows:
        return {}
    found = predict(place, turn, local_state, turn.evaluate, passes=turn.accepted is not None)
    sums = counted(place, found)
    if turn.exchange != last_exchange(place.study):
        return sums
    groups = CaseGroups.of(place.cohort, place.loader.labelled(turn.evaluate), place.study)
    return sums | groups.exact(found, place.study.tasks_by_name)


def counted(place: Workplace, found: Predictions) -> dict[str, TaskSums]:
    """Metric sums by task, those of the study's plug-ins among them."""
    sums, asked = summed(place.local_model, found), place.study.evaluate.metrics
    if not asked:
        return sums
    return {task: with_more(asked, place.study.tasks_by_name[task], own, *found[task]) for task, own in sums.items()}


def predict(
    place: Workplace,
    turn: Turn,
    local_state: Arrays,
    split: Split,
    *,
    passes: bool = False,
    recalibrated: bool = False,
) -> Predictions:
    """What the model that came says of a split's cases, `passes` as for `predictions`.

    Where the backbone is frozen, only heads run. If `recalibrated`, norm layers whose statistics the stage moves get
    those of the site's own images first.
    """
    place.answering(turn.before, local_state)
    frozen = any(stage is not None and place.routing(stage).frozen for stage in (turn.stage, turn.before))
    through = frozen and not place.local_model.model.decodes
    if recalibrated and turn.stage is not None and not frozen:  # features are kept by the backbone that came
        place.recalibrate(turn.stage)
    loader = place.through_backbone(split) if through else place.loader
    return predictions(place.local_model, loader, split, passes=passes, alike=place.alike)


def released(
    place: Workplace, turn: Turn, local_state: Arrays, guard: PrivacyGuard, worked: frozenset[int]
) -> dict[str, Arrays]:
    """Counts of the test cases as policy lets them out once in a study. Raises Refused.

    Noise hides a patient among the test cases. It does not hide one of the training cases, who have shaped the site's
    own entries; so noised counts of a model with own entries that were computed without noise are not released. A model
    that gives no number for one patient alone must not be told that it did: such an answer counts as zeros.
    """
    if guard.metrics == "noised" and (bare := place.bare(worked, turn.before)):
        raise Refused(Code.POLICY, f"own entries without noise are in the model: {', '.join(sorted(bare)[:3])}, ...")
    labelled = place.loader.labelled("test")
    groups = CaseGroups.of(place.cohort, labelled, place.study)
    cases = TestCases(labelled, units_of(labelled, place.cohort.patients, guard.unit), groups)
    model = place.local_model.digests.of(place.received.entries)
    tasks = place.study.tasks_by_name
    return release(
        guard, turn.exchange, model, lambda: predict(place, turn, local_state, "test", passes=True), cases, tasks
    )
