"""Counts of who left when, as a site's policy lets figures out: they are figures of its patients, and no mere sums."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.policy import Metrics
from fedgraft.common.base.files import canonical_json
from fedgraft.common.closed_form.survival import survival_of
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.protocol.routing import privacy_request
from fedgraft.common.study.plan import Stage, Statistics
from fedgraft.common.study.study import Study

LEAST = 10
"""Fewer patients than this are not counted by themselves."""


class Shows(Protocol):
    """What a site says of its figures."""

    @property
    def metrics(self) -> Metrics:
        """How they may leave."""


def demand_figures(policy: Shows, study: Study, stage: Stage) -> None:
    """Raise Refused if the stage counts survival without noise, and the policy lets no such figures out.

    `exact` figures may leave in any case, under masks those of `secure_aggregation` too; `suppressed` ones may in the
    open, once in a study: counts by other bins would tell of few by subtraction (see `coarse`).
    """
    if not isinstance(stage.local, Statistics) or stage.local.survival is None or privacy_request(stage) is not None:
        return
    masked = study.secure_aggregation
    shown = policy.metrics == "exact" or (masked and policy.metrics == "secure_aggregation")
    alone = sum(survival_of(one) is not None for one in study.plan) == 1
    coarse_ = policy.metrics == "suppressed" and not masked and alone and stage.local.of == "survival"
    if not shown and not coarse_:
        raise Refused(Code.POLICY, f"survival is counted in stage {stage.name}, and `metrics` lets no such figures out")


def question(study: Study, stage: Stage, patients: Sequence[str], exits: np.ndarray) -> str:
    """What tells whether two studies are told the same: a digest of bins, tasks, input, whom cases are, and counts.

    `exits` (curves, 2, bins + 1) are exact: a patient who was followed for longer meanwhile makes another question.
    """
    survival = survival_of(stage)
    assert survival is not None
    asked = {"survival": survival, "input": study.input}
    words: dict[str, Any] = {name: one.model_dump(mode="json") for name, one in asked.items()}
    words |= {"tasks": [task.model_dump(mode="json") for task in study.tasks], "cases": sorted(patients)}
    words["exits"] = exits.tolist()
    return hashlib.sha256(canonical_json(words)).hexdigest()


def coarse(exits: np.ndarray) -> np.ndarray:
    """The counts (curves, 2, bins + 1) with none from 1 to 9: what is fewer joins those of later bins until it is ten.

    What is left over at the end joins the last that was shown, so that totals stay; fewer than ten in all are none.
    """
    found = np.zeros_like(exits)
    for place in np.ndindex(exits.shape[:2]):
        waiting, last = 0.0, -1
        for at, count in enumerate(exits[place].tolist()):
            waiting += count
            if waiting >= LEAST:
                found[(*place, at)], waiting, last = waiting, 0.0, at
        if last >= 0:
            found[(*place, last)] += waiting
    return found
