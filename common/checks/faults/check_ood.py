"""Whether out-of-distribution detection would fit the model that a plan ends with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedgraft.common.protocol.routing import sent
from fedgraft.common.study.plan import Role, Stage, Tag
from fedgraft.common.study.stages.aggregates import ComBat, Moments, Standardise, Threshold
from fedgraft.common.study.study import Study


def check_ood(study: Study, tags: Mapping[str, Tag]) -> Iterator[str]:
    """Every reason why distances would be measured from moments of another model, each with its key."""
    described = False
    for index, stage in enumerate(study.plan):
        where = f"plan.{index} ({stage.name})"
        if isinstance(stage.aggregate, Moments):
            described = True
        if isinstance(stage.aggregate, Threshold):
            if not described and any(isinstance(before.aggregate, Moments) for before in study.plan[:index]):
                yield f"{where}.local.of: the moments are of a backbone that has since changed; release them after it"
            later = [after.name for after in study.plan[index + 1 :] if _changes(after, tags)]
            if later:
                yield (
                    f"{where}.local.of: {later[0]} goes on to change the backbone, so the distances would be of "
                    "another model than the one that the plan ends with; do this after it"
                )
            if study.split.val == 0:
                yield f"{where}.local.of: distances are of validation cases, and split.val is 0"
        described = described and not _changes(stage, tags)


def _changes(stage: Stage, tags: Mapping[str, Tag]) -> bool:
    """Whether what all sites' features come from is another after the stage."""
    moved = (tags[key].role for key in sent(stage, tags))
    return isinstance(stage.aggregate, Standardise | ComBat) or any(
        role not in (Role.HEAD, Role.DOMAIN_DISCRIMINATOR) for role in moved
    )
