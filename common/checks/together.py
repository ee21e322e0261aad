"""Who trains together, in words, and what it costs where sites choose: bytes on their way, passes over cases."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedgraft.common.models.architecture import Entry
from fedgraft.common.protocol.choosing import rounds_of_choice
from fedgraft.common.study.clusters import ByLoss
from fedgraft.common.study.study import Study


def who_is_together(study: Study, entries: Mapping[str, Entry]) -> tuple[str, ...]:
    """Sentences about the clusters of a study; none if it has none."""
    if study.clusters is None:
        return ()
    cost = (_cost(study, study.clusters, entries),) if isinstance(study.clusters, ByLoss) else ()
    return (study.clusters.description, *cost)


def _cost(study: Study, clusters: ByLoss, entries: Mapping[str, Entry]) -> str:
    tags = {key: entry.tag for key, entry in entries.items()}
    rounds = sum(rounds_of_choice(study, tags).values())
    sizes = {key: math.prod(entry.shape) * np.dtype(entry.dtype).itemsize for key, entry in entries.items()}
    one = sum(sizes.values())
    several = one + (clusters.count - 1) * sum(sizes[key] for key in clusters.own.keys(tags))
    return (
        f"To choose, a site gets all {clusters.count} models in {rounds} round{'s' * (rounds > 1)}: up to "
        f"{several / 1e6:.2f} MB down in each in place of {one / 1e6:.2f} MB (what has not changed does not travel "
        f"again), and as much up as with one model. It costs {clusters.count} passes over its training cases a round."
    )
