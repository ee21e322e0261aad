"""Courses of a gradient stage that cannot work, each with its reason: early stopping, averages, steps of two kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedgraft.common.methods.memory.carried import personal
from fedgraft.common.protocol.routing import changed, stays
from fedgraft.common.study.plan import (
    Gradient,
    Role,
    Stage,
    Tag,
)
from fedgraft.common.study.stages.aggregates import Nothing
from fedgraft.common.study.study import Study


def check_stopping(study: Study, stage: Stage, local: Gradient, tags: Mapping[str, Tag]) -> Iterator[str]:
    """Every reason why the stage cannot stop, average or split its steps in this way."""
    if stage.early_stopping is not None:
        yield from _until(study, stage, tags)
    if stage.weight_averaging is not None and isinstance(stage.aggregate, Nothing):
        yield "weight_averaging: nothing is aggregated, so there is nothing to average"
    if local.heads_first is not None:
        yield from _heads_first(stage, local, tags)
    if local.inner_steps is not None:
        yield from _inner_steps(local)


def _until(study: Study, stage: Stage, tags: Mapping[str, Tag]) -> Iterator[str]:
    if not study.evaluate.every:
        yield "early_stopping: sites evaluate only at the end; set evaluate.every to 1"
    if study.evaluate.split != "val":
        yield "early_stopping: would choose by the test split; set evaluate.split to val"
    if isinstance(stage.aggregate, Nothing):
        yield "early_stopping: nothing is aggregated, so there is no common model to judge"
    elif stays(stage, tags) or personal(stage):
        yield "early_stopping: what sites keep cannot be taken back to an earlier round; share all that is trained"
    if stage.weight_averaging is not None:
        yield "early_stopping: a stage that goes back to its best round has no use for an average; leave one out"


def _heads_first(stage: Stage, local: Gradient, tags: Mapping[str, Tag]) -> Iterator[str]:
    if {tags[key].role is Role.HEAD for key in changed(stage, tags)} != {True, False}:
        yield "local.heads_first: alternates between heads and all else, so both must be trained"
    if local.private is not None:
        yield "local.heads_first: is not built for private work"


def _inner_steps(local: Gradient) -> Iterator[str]:
    if local.steps is None:
        yield "local.inner_steps: steps ahead are counted; give steps, not epochs"
    if local.private is not None:
        yield "local.inner_steps: is not built for private work"
