"""How a table's columns come to one scale: by the study's public numbers, or by the sites' sums, noised or not."""

from __future__ import annotations

from collections.abc import Iterator

from fedgraft.common.protocol.routing import is_private
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.model_spec import ENSEMBLE
from fedgraft.common.study.plan import Harmonise, Role, Stage, Statistics
from fedgraft.common.study.stages.aggregates import ComBat, Nothing, Standardise
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Multilabel

_MAX_NORM = PrivateSums.model_fields["max_norm"].default


def check_columns(study: Study, columns: TableInput) -> Iterator[str]:
    """Every reason why the columns would have no scale, two, or one that gives patients away; each with its key."""
    yield from _harmonised(study, columns)
    summed = any(isinstance(stage.aggregate, Standardise) for stage in study.plan)
    # Base models have their own standardisation, and so has a finished model that is only measured.
    only_harmonises = study.model.heads == "weights" and all(map(_harmonises, study.plan))
    fresh = study.model.backbone != ENSEMBLE and not only_harmonises and bool(study.plan)
    first = next((at for at, stage in enumerate(study.plan) if not _harmonises(stage)), 0)
    if fresh and columns.needs_sums and not isinstance(study.plan[first].aggregate, Standardise):
        yield (
            "plan.0: a table needs its columns on one scale: public numbers (input.standardise), or a first stage "
            "that standardises them by sums over the sites (local.of: columns, aggregate: standardise)"
        )
    if summed and columns.standardise:
        yield "input.standardise: gives the columns' scale, and a stage would compute another; leave out one of them"
    noised = False
    for at, stage in enumerate(study.plan):
        if not isinstance(stage.local, Statistics) or stage.local.of != "columns":
            continue
        where, private = f"plan.{at} ({stage.name})", stage.local.private
        if private is None and is_private(study):
            yield (
                f"{where}.local.private: the plan works with differential privacy, but these sums would leave without "
                "noise; give input.standardise in its place, or noise here and input.ranges"
            )
        if private is None:
            continue
        noised = True
        if at:  # nor is there anything to harmonise by, in a plan with noise
            yield f"{where}: noised sums of columns start from input.ranges, so they must be the first stage"
        if stage.where == "unlabelled":
            yield f"{where}.where: noised sums are taken over patients with labels, who are counted; use all"
        if private.max_norm != _MAX_NORM:
            yield f"{where}.local.private.max_norm: is for features; what a patient can change here is input.ranges"
        if not columns.ranges:
            yield (
                f"{where}.local.private: needs public limits for every numeric column, in input.ranges "
                f"({', '.join(columns.numeric) or 'there is no numeric column'})"
            )
    if columns.ranges and not noised:
        yield "input.ranges: bounds noised sums of columns, and no stage takes any; give local.private to one that does"


def _harmonises(stage: Stage) -> bool:
    return isinstance(stage.aggregate, ComBat) or isinstance(stage.local, Harmonise)


def _harmonised(study: Study, columns: TableInput) -> Iterator[str]:
    """Why columns would not be harmonised, or patients given away, or their labels carried into the columns."""
    if columns.harmonise is None:
        return
    if study.model.backbone == ENSEMBLE:
        yield "input.harmonise: an ensemble's base models see columns as they are; harmonise each in a run of its own"
        return
    brought = study.model.heads == "weights"
    both = [isinstance(stage.aggregate, ComBat) for stage in study.plan[:2]]
    if not (both == [True, False] and isinstance(study.plan[1].local, Harmonise)) and not (
        brought and study.plan and isinstance(study.plan[0].local, Harmonise)
    ):
        yield (
            "plan.0: columns are harmonised before anything else: a stage with local.of: harmonisation and aggregate: "
            "combat, then one with local.kind: harmonise (of a finished model, model.heads: weights, the second alone)"
        )
    if any(_harmonises(stage) for stage in study.plan[2:]):
        yield "plan: columns are harmonised once, by the first two stages"
    if is_private(study):
        yield (
            "input.harmonise: the plan works with differential privacy, but what one patient adds to sums of squares "
            "and products with covariates is not bounded, and each site's own effects come from its patients without "
            "noise; not built: leave input.harmonise out"
        )
    told = {
        name for task in study.tasks for name in (task.name, *(task.labels if isinstance(task, Multilabel) else ()))
    }
    if leaks := [name for name in columns.harmonise.covariates if name in told]:
        yield (
            f"input.harmonise.covariates: {', '.join(leaks)} is what the study asks for; as a covariate it would carry "
            "the answer into the columns that it is to be told from"
        )


def check_harmonise(study: Study, stage: Stage) -> Iterator[str]:
    """What a stage in which sites find their own effects cannot be."""
    if not isinstance(study.input, TableInput) or study.input.harmonise is None:
        yield "local: harmonises a table's columns; say in input.harmonise by which covariates"
    if not isinstance(stage.aggregate, Nothing):
        yield "aggregate: a site's own effects stay with it; use aggregate: nothing"
    if stage.share.roles:
        yield "share: a site's own effects stay with it; use share: none"
    if Role.SITE_EFFECTS not in stage.keep.roles:
        yield "keep: say that the site keeps its own effects; keep: site_effects"
    if stage.rounds > 1:
        yield "rounds: harmonising gives the same result every time; one is enough"
    if stage.where == "source" or stage.personalise == "best":
        yield "where: all sites whose columns are to be harmonised find their own effects, whatever comes of it"


def check_harmonisation_sums(study: Study, stage: Stage, local: Statistics) -> Iterator[str]:
    """What sums for ComBat need."""
    if local.of != "harmonisation":
        return
    if not isinstance(study.input, TableInput) or study.input.harmonise is None:
        yield "local.of: harmonisation is of a table's columns; say in input.harmonise by which covariates"
    if local.private is not None:
        yield "local.private: squares and products with covariates have no public bound to be noised by; not built"
    if local.split != "train":
        yield "local.split: validation cases are harmonised by what training cases say; use train"
    if stage.where == "source":
        yield "where: what is common is common to all sites; use all"
