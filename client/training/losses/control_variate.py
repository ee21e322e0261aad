"""SCAFFOLD's control variates at a site: what corrects each step, and what becomes of the site's own.

Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging", option II, with x the coordinator's entries, y_i
the site's after K steps of rate eta:

    y_i = y_i - eta (g(y_i) - c_i + c)        c_i = c_i - c + (x - y_i) / (K eta)
"""

from __future__ import annotations

import numpy as np

from fedgraft.client.training.losses.base import Regulariser, RoundContext, Visit
from fedgraft.common.protocol.auxiliary import CONTROL_VARIATE, with_control_variates
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.rates import stepped
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.plan import Gradient, Stage
from fedgraft.common.study.stages.losses import ControlVariate


def control_variate_term(spec: ControlVariate, visit: Visit) -> Regulariser:  # noqa: ARG001 - every loss is built alike
    """By parameter the constant gradient c - c_i, which is added to that of every step."""
    visit_context = visit.visit_context
    pulls = {
        key: visit.tensor(
            visit_context.auxiliary[CONTROL_VARIATE + key]
            - visit_context.local_state.get(CONTROL_VARIATE + key, np.float32(0))
        )
        for key in visit.trained
        if CONTROL_VARIATE + key in visit_context.auxiliary
    }
    return lambda: pulls


def site_control_variate(local_state: Arrays, number: int) -> dict[str, np.ndarray]:
    """What the site has kept of its control variates when round `number` begins: nothing in the stage's first."""
    return {key: array for key, array in local_state.items() if key.startswith(CONTROL_VARIATE)} if number > 1 else {}


def next_control_variate(
    stage: Stage, tags: Tags, round_context: RoundContext, trained: Arrays
) -> dict[str, np.ndarray]:
    """The site's own control variates after a visit that ended with the entries `trained`."""
    assert isinstance(stage.local, Gradient)
    visit_context, found = round_context.visit_context, {}
    for key in with_control_variates(stage, tags):
        way = stepped(stage.local, tags[key], round_context.round, round_context.rounds)
        before = visit_context.local_state.get(CONTROL_VARIATE + key, np.float32(0))
        drift = (visit_context.received[key] - trained[key]) / np.float32(way)
        found[CONTROL_VARIATE + key] = np.asarray(
            before - visit_context.auxiliary[CONTROL_VARIATE + key] + drift, np.float32
        )
    return found
