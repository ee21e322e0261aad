"""SCAFFOLD's control variates at a site: what corrects each step, and what becomes of the site's own.

Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging", option II, with x the coordinator's entries, y_i
the site's after K steps of rate eta:

    y_i = y_i - eta (g(y_i) - c_i + c)        c_i = c_i - c + (x - y_i) / (K eta)
"""

from __future__ import annotations

import numpy as np

from fedgraft.client.training.losses.base import Moment, Pull, Visit
from fedgraft.common.protocol.auxiliary import CONTROL, controlled
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.rates import stepped
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.losses import Control
from fedgraft.common.study.plan import Gradient, Stage


def control_term(term: Control, visit: Visit) -> Pull:  # noqa: ARG001 - every term is built alike
    """The constant gradient c - c_i."""
    around = visit.around
    pulls = {
        key: visit.tensor(around.aside[CONTROL + key] - around.kept.get(CONTROL + key, np.float32(0)))
        for key in visit.trained
        if CONTROL + key in around.aside
    }
    return lambda: pulls


def own_control(kept: Arrays, number: int) -> dict[str, np.ndarray]:
    """What the site has kept of its control variates when round `number` begins: nothing in the stage's first."""
    return {key: array for key, array in kept.items() if key.startswith(CONTROL)} if number > 1 else {}


def next_control(stage: Stage, tags: Tags, moment: Moment, trained: Arrays) -> dict[str, np.ndarray]:
    """The site's own control variates after a visit that ended with the entries `trained`."""
    assert isinstance(stage.local, Gradient)
    around, found = moment.around, {}
    for key in controlled(stage, tags):
        way = stepped(stage.local, tags[key], moment.round, moment.rounds)
        before = around.kept.get(CONTROL + key, np.float32(0))
        drift = (around.received[key] - trained[key]) / np.float32(way)
        found[CONTROL + key] = np.asarray(before - around.aside[CONTROL + key] + drift, np.float32)
    return found
