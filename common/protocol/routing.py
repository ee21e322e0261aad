"""Which state entries a stage changes, sends and keeps: one rule for both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedgraft.common.study.losses import Need, needs
from fedgraft.common.study.plan import (
    Gradient,
    Recalibrate,
    Role,
    Select,
    Stage,
    Statistics,
    Tag,
)
from fedgraft.common.study.private_sums import PrivateSums
from fedgraft.common.study.training import Private

KINDS = {"double": "float64", "single": "float32"}
"""The type of the numbers that sums travel as."""

Tags = Mapping[str, Tag]
Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and type by name."""
DISTANCES, BINS = "distances", 1000
"""The name of counts of how far features are from their mean, and how many counts there are."""


def changed(stage: Stage, tags: Tags) -> tuple[str, ...]:
    """Entries that a site's visit changes. Running statistics move only where their stage trains them."""
    if isinstance(stage.local, Recalibrate):
        return Select(roles=frozenset({Role.NORM_STATS})).keys(tags)
    if not isinstance(stage.local, Gradient):
        return ()
    still = {Role.SCALE, Role.MEMBER} | ({Role.NORM_STATS} if stage.local.fixed_norm_stats else set())
    if Need.CRITIC not in needs(stage.local.terms):
        still |= {Role.CRITIC}
    return tuple(key for key in stage.local.train.keys(tags) if tags[key].role not in still)


@dataclass(frozen=True)
class Route:
    """What a site's visits in one stage do with the model's entries; worked out once, since every visit asks."""

    changed: tuple[str, ...]
    sent: tuple[str, ...]
    stays: tuple[str, ...]
    roles: frozenset[Role]
    """Roles of what is changed."""
    rests: bool
    plain: bool
    """Whether what is sent is computed from the site's data without noise."""

    @classmethod
    def of(cls, stage: Stage, tags: Tags) -> Route:
        """That of a stage for a model with these tags."""
        moves = changed(stage, tags)
        there, here = sent(stage, tags), stays(stage, tags)
        roles = frozenset(tags[key].role for key in moves)
        return cls(moves, there, here, roles, rests(stage, tags), releases_plainly(stage, tags))


def sent(stage: Stage, tags: Tags) -> tuple[str, ...]:
    """Changed entries that go back to the coordinator."""
    return tuple(key for key in changed(stage, tags) if tags[key] in stage.share)


def stays(stage: Stage, tags: Tags) -> tuple[str, ...]:
    """Changed entries that stay at the site."""
    return tuple(key for key in changed(stage, tags) if tags[key] not in stage.share)


def own(stage: Stage, tags: Tags, key: str) -> bool:
    """Whether a site that has its own value of `key` uses it in this stage, rather than the coordinator's."""
    return tags[key] not in stage.share


def privacy_asked(stage: Stage) -> Private | PrivateSums | None:
    """What the stage asks of its privacy; None if it is without noise."""
    return stage.local.private if isinstance(stage.local, Gradient | Statistics) else None


def rests(stage: Stage, tags: Tags) -> bool:
    """Whether the backbone stays as it is in this stage, so that a case's features do too."""
    if isinstance(stage.local, Statistics):
        return stage.local.of != "columns"
    return isinstance(stage.local, Gradient) and all(tags[key].role is Role.HEAD for key in changed(stage, tags))


def releases_plainly(stage: Stage, tags: Tags) -> bool:
    """Whether what the sites of this stage send is computed from their data without noise."""
    if privacy_asked(stage) is not None:
        return False
    return isinstance(stage.local, Statistics) or bool(sent(stage, tags))


def keeps_sums(stage: Stage) -> bool:
    """Whether the coordinator keeps what each site of this stage sends, beyond the study."""
    return isinstance(stage.local, Statistics) and stage.local.keep_sums
