"""Which state entries a stage changes, sends and keeps, and what it asks for: one rule for both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedgraft.common.protocol.instructions import Arrays, type_name
from fedgraft.common.study.plan import (
    Gradient,
    Harmonise,
    Recalibrate,
    Role,
    Select,
    Stage,
    Statistics,
    Tag,
)
from fedgraft.common.study.stages.losses import Discrepancy, Requirement, requirements
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.stages.training import Private
from fedgraft.common.study.study import Study

KINDS = {"double": "float64", "single": "float32"}
"""The type of the numbers that sums travel as."""

Tags = Mapping[str, Tag]
Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and type by name."""
DISTANCES, BINS = "distances", 1000
"""The name of counts of how far features are from their mean, and how many counts there are."""


def forms_of(state: Arrays) -> Shapes:
    """By name the shape and the type's name of each array, such as ((3, 128), "float32")."""
    return {key: (array.shape, type_name(array)) for key, array in state.items()}


def changed(stage: Stage, tags: Tags) -> tuple[str, ...]:
    """Entries that a site's visit changes. Running statistics move only where their stage trains them."""
    if isinstance(stage.local, Recalibrate):
        return Select(roles=frozenset({Role.NORM_STATS})).keys(tags)
    if isinstance(stage.local, Harmonise):
        return Select(roles=frozenset({Role.SITE_EFFECTS})).keys(tags)
    if not isinstance(stage.local, Gradient):
        return ()
    still = {Role.SCALE, Role.SITE_EFFECTS, Role.BASE_MODEL} | (
        {Role.NORM_STATS} if stage.local.fixed_norm_stats else set()
    )
    if Requirement.DOMAIN_DISCRIMINATOR not in requirements(stage.local.losses):
        still |= {Role.DOMAIN_DISCRIMINATOR}
    return tuple(key for key in stage.local.train.keys(tags) if tags[key].role not in still)


@dataclass(frozen=True)
class Routing:
    """What a site's visits in one stage do with the model's entries; worked out once, since every visit asks."""

    changed: tuple[str, ...]
    sent: tuple[str, ...]
    stays: tuple[str, ...]
    roles: frozenset[Role]
    """Roles of what is changed."""
    frozen: bool
    plain: bool
    """Whether what is sent is computed from the site's data without noise."""
    silent: bool
    """Whether nothing that is computed from the site's data is sent."""

    @classmethod
    def of(cls, stage: Stage, tags: Tags) -> Routing:
        """That of a stage for a model with these tags."""
        moves = changed(stage, tags)
        there, here = sent(stage, tags), stays(stage, tags)
        roles = frozenset(tags[key].role for key in moves)
        silent = not there and not isinstance(stage.local, Statistics) and not sends_sums(stage)
        return cls(moves, there, here, roles, frozen(stage, tags), releases_plainly(stage, tags), silent)


def sent(stage: Stage, tags: Tags) -> tuple[str, ...]:
    """Changed entries that go back to the coordinator."""
    return tuple(key for key in changed(stage, tags) if tags[key] in stage.share)


def stays(stage: Stage, tags: Tags) -> tuple[str, ...]:
    """Changed entries that stay at the site."""
    return tuple(key for key in changed(stage, tags) if tags[key] not in stage.share)


def own(stage: Stage, tags: Tags, key: str) -> bool:
    """Whether a site that has its own value of `key` uses it in this stage, rather than the coordinator's."""
    return tags[key] not in stage.share


def privacy_request(stage: Stage) -> Private | PrivateSums | None:
    """What the stage asks of its privacy; None if it is without noise."""
    return stage.local.private if isinstance(stage.local, Gradient | Statistics) else None


def is_private(study: Study) -> bool:
    """Whether any stage works with differential privacy, so that one patient must not move another."""
    return any(privacy_request(stage) is not None for stage in study.plan)


def frozen(stage: Stage, tags: Tags) -> bool:
    """Whether the backbone stays as it is in this stage, so that a case's features do too."""
    if isinstance(stage.local, Statistics):
        return stage.local.of not in ("columns", "harmonisation", "survival")
    return isinstance(stage.local, Gradient) and all(tags[key].role is Role.HEAD for key in changed(stage, tags))


def releases_plainly(stage: Stage, tags: Tags) -> bool:
    """Whether what the sites of this stage send is computed from their data without noise."""
    if privacy_request(stage) is not None:
        return False
    return isinstance(stage.local, Statistics) or bool(sent(stage, tags)) or sends_sums(stage)


def sends_sums(stage: Stage) -> bool:
    """Whether the sites of a gradient stage send sums over their cases beside entries."""
    return isinstance(stage.local, Gradient) and any(method.sends_sums for method in stage.local.methods)


def requires_source(study: Study) -> bool:
    """Whether any stage asks sites to have source data beside their own."""
    gradients = (stage.local for stage in study.plan if isinstance(stage.local, Gradient))
    return any(Requirement.SOURCE in requirements(local.losses) for local in gradients)


def needs_moments(stage: Stage) -> bool:
    """Whether the stage's sites need moments that an earlier one released."""
    if isinstance(stage.local, Statistics):
        return stage.local.of == "distances"
    losses = stage.local.losses if isinstance(stage.local, Gradient) else ()
    return any(isinstance(loss, Discrepancy) and loss.measure == "moments" for loss in losses)


def retains_statistics(stage: Stage) -> bool:
    """Whether the coordinator keeps what each site of this stage sends, beyond the study."""
    return isinstance(stage.local, Statistics) and stage.local.retain_statistics
