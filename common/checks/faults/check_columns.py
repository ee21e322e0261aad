"""How a table's columns come to one scale: by the study's public numbers, or by the sites' sums, noised or not."""

from __future__ import annotations

from collections.abc import Iterator

from fedgraft.common.protocol.routing import is_private
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.model_spec import ENSEMBLE
from fedgraft.common.study.plan import Statistics
from fedgraft.common.study.stages.aggregates import Standardise
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.study import Study

_MAX_NORM = PrivateSums.model_fields["max_norm"].default


def check_columns(study: Study, columns: TableInput) -> Iterator[str]:
    """Every reason why the columns would have no scale, two, or one that gives patients away; each with its key."""
    summed = any(isinstance(stage.aggregate, Standardise) for stage in study.plan)
    # Base models have their own standardisation, and so has a finished model that is only measured.
    fresh = study.model.backbone != ENSEMBLE and bool(study.plan)
    if fresh and columns.needs_sums and not isinstance(study.plan[0].aggregate, Standardise):
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
        if at:
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
