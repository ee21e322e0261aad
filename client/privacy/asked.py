"""What a private stage asks of a site, in the words of its policy."""

from __future__ import annotations

from client.policy import Request
from common.plan import Gradient, Role, Stage
from common.study import Study
from common.training import Private
from common.travel import privacy_asked


def request_of(study: Study, stage: Stage, roles: frozenset[Role]) -> Request:
    """The request of all the stage's rounds together; `roles` are those of the entries that are trained."""
    asked = privacy_asked(stage)
    assert asked is not None
    return Request(
        study.architectures,
        roles,
        unit=asked.unit,
        epsilon=asked.epsilon,
        sigma=asked.sigma,
        clip=asked.clip,
        q=asked.sample,
        steps=steps_of(stage) * stage.rounds,
        sampled=isinstance(asked, Private),
        masked=study.masked,
    )


def steps_of(stage: Stage) -> int:
    """Steps of one round; sums are one."""
    if not isinstance(stage.local, Gradient):
        return 1
    assert stage.local.steps is not None
    return stage.local.steps
