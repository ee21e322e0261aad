"""Where sites choose, of the models of clusters, the one that fits them: in which exchanges, and what then travels.

A choice says something of the patients. It leaves a site only with entries or sums that are in the open, by which
anybody could tell from which model they were computed; never by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from fedgraft.common.protocol.routing import Tags, releases_plainly
from fedgraft.common.study.clusters import ByLoss, begins_at
from fedgraft.common.study.schedule import Step, schedule
from fedgraft.common.study.study import Study

V = TypeVar("V")


def choices(study: Study, step: Step, tags: Tags) -> tuple[str, ...]:
    """The names of the models among which sites choose in this exchange; none if they get the one that they have.

    They do not in the first round of clusters that begin from sums: all models are alike until then.
    """
    clusters = study.clusters
    if not isinstance(clusters, ByLoss) or not step.work:
        return ()
    begin = begins_at(clusters, study.plan)
    alike = clusters.stage is not None and (step.stage, step.round) == (begin, 1)
    chooses = step.stage >= begin and not alike and releases_plainly(study.plan[step.stage], tags)
    return clusters.names if chooses else ()


def rounds_of_choice(study: Study, tags: Tags) -> dict[str, int]:
    """By stage in how many of its rounds sites choose."""
    steps = [step for step in schedule(study) if choices(study, step, tags)]
    return {
        study.plan[at].name: sum(1 for step in steps if step.stage == at) for at in sorted({s.stage for s in steps})
    }


def side_by_side(models: Mapping[str, Mapping[str, V]], own: Collection[str]) -> dict[str, V]:
    """All models as they travel together: `own` entries by model and name, the others, which all share, once."""
    shared = {key: value for model in models.values() for key, value in model.items() if key not in own}
    return shared | {
        _place(name, key): value for name, model in models.items() for key, value in model.items() if key in own
    }


def chosen(together: Mapping[str, V], name: str, keys: Collection[str], own: Collection[str]) -> dict[str, V]:
    """Of what travelled together the entries `keys` of one model."""
    return {key: together[_place(name, key) if key in own else key] for key in keys}


def _place(model: str, key: str) -> str:
    return f"{model}/{key}"
