"""What a run adds up on its way, and what it ends with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedgraft.common.closed_form.ood import OodModel
from fedgraft.common.protocol.instructions import Arrays, Code, Greeting
from fedgraft.server.rounds.scores import Points, Scores


@dataclass
class Totals:
    """Running sums over the exchanges of a run, saved with every checkpoint."""

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    refusals: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    """Stages that ended before their last round, and the round whose model they went back to."""
    undecided: dict[str, int] = field(default_factory=dict)
    """Stages that may end early, and in how many rounds there were too few cases to say."""
    clusters: dict[str, list[str]] = field(default_factory=dict)
    """By name of the cluster its sites, once there are clusters."""
    likeness: list[dict[str, Any]] = field(default_factory=list)
    """Of clusters from sums, how far apart all pairs of sites lie; see `closed_form.likeness`."""

    @property
    def taken(self) -> dict[str, list[str]]:
        """The clusters that have sites: where sites choose, a model may be one that none has."""
        return {name: sites for name, sites in self.clusters.items() if sites}


@dataclass(frozen=True)
class RunOutcome:
    """What a run ends with: the aggregated states, who took part, the last evaluation, and the totals."""

    states: Mapping[str, Arrays]
    """By cluster of sites its model; one of the name "" where there are no clusters."""
    greetings: Mapping[str, Greeting]
    absent: Mapping[str, Code]
    scores: Scores
    totals: Totals
    points: Points
    """The operating points, if the study asked for some."""
    validation: Scores
    """Of the validation cases at the end, if thresholds are chosen on them; else none."""
    late: frozenset[str] = frozenset()
    """Sites that were not asked at the start, and came by themselves."""
    others: Mapping[str, Code] = field(default_factory=dict)
    """Of sites that were not asked at the start, those that came and did not take part, and why."""
    ood_model: OodModel | None = None
    """What the sites' images are like, if the plan asked."""
    followed: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What patients were followed for: see `closed_form.cox.followed`; nothing where there are clusters."""
