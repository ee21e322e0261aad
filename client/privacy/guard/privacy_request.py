"""What a private stage asks of a site, in the words of its policy."""

from __future__ import annotations

from fedgraft.client.privacy.policy import PrivacyRequest
from fedgraft.common.protocol.routing import privacy_request
from fedgraft.common.study.plan import Gradient, Role, Stage
from fedgraft.common.study.stages.training import Private
from fedgraft.common.study.study import Study


def request_of(study: Study, stage: Stage, roles: frozenset[Role]) -> PrivacyRequest:
    """The request of all the stage's rounds together; `roles` are those of the entries that are trained."""
    asked = privacy_request(stage)
    assert asked is not None
    return PrivacyRequest(
        study.architectures,
        roles,
        unit=asked.unit,
        epsilon=asked.epsilon,
        noise_multiplier=asked.noise_multiplier,
        max_grad_norm=asked.max_grad_norm if isinstance(asked, Private) else asked.max_norm,
        sample_rate=asked.sample_rate,
        steps=steps_of(stage) * stage.rounds,
        sampled=isinstance(asked, Private),
        secure_aggregation=study.secure_aggregation,
    )


def steps_of(stage: Stage) -> int:
    """Optimiser steps of one round; a stage of sums counts as one."""
    if not isinstance(stage.local, Gradient):
        return 1
    assert stage.local.steps is not None
    return stage.local.steps
