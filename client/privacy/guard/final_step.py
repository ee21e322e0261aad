"""The final step of a study at a site: the last work of which something leaves. From there on a policy may hold all."""

from __future__ import annotations

from collections.abc import Callable

from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.policy import Reason, SitePolicy
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.protocol.routing import Routing, Tags
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.study import Study

AskedIn = Callable[[Stage], bool]
"""Whether the site could be asked to work in a stage."""


def final_exchange(study: Study, tags: Tags, asked_in: AskedIn) -> int:
    """The number of the exchange of the final step; of a study in which no work leaves, of the first evaluation."""
    place = _final_stage(study, tags, asked_in)
    before = study.plan if place is None else study.plan[: place + 1]
    return sum(stage.rounds for stage in before) + (1 if place is None else 0)


def demand_final_step(study: Study, policy: SitePolicy, tags: Tags, asked_in: AskedIn) -> None:
    """Where policy holds: raise Refused unless the study waits, and says by itself which exchange is the last."""
    if policy.release != "hold":
        return
    if not study.rounds.release_wait_h:
        raise Refused(Code.POLICY, Reason.NOT_AWAITED.value)
    place = _final_stage(study, tags, asked_in)
    if place is not None and study.plan[place].early_stopping is not None:
        # Only the coordinator would know in the end which round was the last, and it would have left by then.
        raise Refused(Code.POLICY, Reason.NO_LAST_STEP.value)


def _final_stage(study: Study, tags: Tags, asked_in: AskedIn) -> int | None:
    places = reversed(range(len(study.plan)))
    found = (at for at in places if asked_in(study.plan[at]) and not Routing.of(study.plan[at], tags).silent)
    return next(found, None)
