"""Combinations that cannot work are refused before round 1, all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from common.inputs import TableInput
from common.plan import Gradient, Mean, Nothing, Recalibrate, Ridge, Role, Stage, Standardise, Statistics, Tag
from common.study import Study
from common.travel import changed

_CLOSED_FORM = {"features": Ridge, "columns": Standardise}


def check(study: Study, tags: Mapping[str, Tag]) -> list[str]:
    """Every reason why this study cannot work with a model of these tags, each with its key; none if it can."""
    faults: list[str] = []
    local_backbone = False
    for index, stage in enumerate(study.plan):
        where = f"plan.{index} ({stage.name})"
        faults += [f"{where}.{fault}" for fault in _stage(study, stage, tags)]
        if local_backbone and isinstance(stage.local, Statistics) and stage.local.of == "features":
            faults.append(
                f"{where}.local: sums of features need the same backbone at all sites, but an earlier stage lets "
                "entries of it stay at the sites"
            )
        keeps = (key for key in changed(stage, tags) if tags[key] not in stage.share)
        local_backbone |= any(tags[key].role is not Role.HEAD for key in keeps)
    if isinstance(study.input, TableInput) and not isinstance(study.plan[0].merge, Standardise):
        faults.append("plan.0: a table needs a first stage that standardises its columns (merge: standardise)")
    if study.evaluate.every and study.split.val == 0 and study.evaluate.split == "val":
        faults.append("split.val: is 0, but evaluate.split is val; set evaluate.every to 0 or give val a share")
    if study.split.test == 0:
        faults.append("split.test: is 0, so the run could not be evaluated at its end")
    return faults


def _stage(study: Study, stage: Stage, tags: Mapping[str, Tag]) -> Iterator[str]:
    match stage.local:
        case Gradient():
            yield from _gradient(study, stage, stage.local, tags)
        case Statistics():
            yield from _statistics(study, stage, stage.local)
        case Recalibrate():
            yield from _recalibrate(stage, tags)


def _gradient(study: Study, stage: Stage, local: Gradient, tags: Mapping[str, Tag]) -> Iterator[str]:
    moves = changed(stage, tags)
    if all(tags[key].role is Role.NORM_STATS for key in moves):
        yield "local.train: selects nothing that gradients could train in this model"
    if stage.where == "unlabelled":
        yield "where: the supervised loss needs labels, but the stage is for unlabelled sites"
    if local.augment is not None and isinstance(study.input, TableInput):
        yield "local.augment: is for images, but the study's input is a table"
    if not isinstance(stage.merge, Mean | Nothing):
        yield f"merge: {stage.merge.kind} merges sums, but gradient work gives entries; use mean or nothing"
    travels = [key for key in moves if tags[key] in stage.share]
    if isinstance(stage.merge, Mean) and not travels:
        yield "share: nothing that is trained travels, so there is nothing to merge; share more, or merge: nothing"
    if isinstance(stage.merge, Nothing) and travels:
        yield "merge: what is shared must be merged; use merge: mean, or share: none"
    stray = [key for key in moves if tags[key] not in stage.share and tags[key] not in stage.keep]
    if stray:
        roles = sorted({tags[key].role.value for key in stray})
        yield f"keep: {', '.join(roles)} is trained, but neither shared nor declared to stay at the site (keep)"


def _statistics(study: Study, stage: Stage, local: Statistics) -> Iterator[str]:
    if not isinstance(stage.merge, _CLOSED_FORM[local.of]):
        kind = {"features": "ridge", "columns": "standardise"}[local.of]
        yield f"merge: sums of {local.of} are merged by {kind}, not by {stage.merge.kind}"
    if local.of == "columns" and not isinstance(study.input, TableInput):
        yield "local.of: columns are those of a table, but the study's input is images"
    if stage.rounds > 1:
        yield "rounds: sums do not change from round to round; one is enough"
    if local.of == "features" and stage.where == "unlabelled":
        yield "where: a closed-form head needs labels, but the stage is for unlabelled sites"
    if local.of == "features" and Role.HEAD not in stage.share.roles:
        yield "share: the solved heads must reach the sites; share: heads"


def _recalibrate(stage: Stage, tags: Mapping[str, Tag]) -> Iterator[str]:
    if not changed(stage, tags):
        yield "local: this backbone has no norm layers with running statistics to recalibrate"
    if not isinstance(stage.merge, Nothing):
        yield "merge: recalibration shares nothing; use merge: nothing"
    if stage.share.roles:
        yield "share: recalibrated statistics are the site's own; use share: none"
    if Role.NORM_STATS not in stage.keep.roles:
        yield "keep: say that the site keeps its norm statistics; keep: norm_stats"
    if stage.rounds > 1:
        yield "rounds: recalibration gives the same result every time; one is enough"
