"""Ways for what is shared that cannot work: under masks, and in fewer bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedgraft.common.protocol.routing import sends_sums, sent
from fedgraft.common.study.plan import Stage, Statistics, Tag
from fedgraft.common.study.stages.aggregates import Mean, Newton, Nothing, Ridge, ServerOptimiser, Sums
from fedgraft.common.study.study import Study

_ADDS_UP = Mean | ServerOptimiser | Sums | Nothing
"""Aggregations that need no more than the sum over the sites."""


def check_secure(study: Study) -> Iterator[str]:
    """Every reason why the study's sites cannot mask what they send."""
    for index, stage in enumerate(study.plan):
        if not isinstance(stage.aggregate, _ADDS_UP):
            yield (
                f"plan.{index} ({stage.name}).aggregate: {stage.aggregate.kind} looks at the sites one by one, "
                f"and masks hide "
                "all but their sum; use mean, or secure_aggregation: false"
            )
        if isinstance(stage.aggregate, Ridge | Newton) and stage.aggregate.ridge_penalty == "loso":
            yield (
                f"plan.{index} ({stage.name}).aggregate.ridge_penalty: loso leaves out one site after the other, "
                f"and masks hide "
                f"each site's sums; {'use auto' if isinstance(stage.aggregate, Ridge) else 'give a number'}, "
                "or secure_aggregation: false"
            )
    sending = {stage.where for stage in study.plan if not isinstance(stage.aggregate, Nothing) or sends_sums(stage)}
    if len(sending) > 1:
        yield (
            f"plan: stages that send are for {' and for '.join(sorted(sending))} sites, and a site masks with one "
            "group alone: the sums of two groups tell about those in only one; give all of them the same `where`"
        )
    if study.rounds.max_change is not None:
        yield (
            "rounds.max_change: bounds the change of each site, which masks hide from the coordinator; leave it out, "
            "or secure_aggregation: false"
        )


def check_compression(study: Study, stage: Stage, tags: Mapping[str, Tag]) -> Iterator[str]:
    """Every reason why what the stage shares cannot travel in fewer bytes."""
    if stage.compress.kind == "none":
        return
    if isinstance(stage.local, Statistics):
        yield "compress: is for changes of entries, and sums travel as they are; use local.precision: single"
    elif not sent(stage, tags):
        yield "compress: nothing is shared, so there is nothing to round; leave it out"
    if study.secure_aggregation:
        yield (
            "compress: masked words are as wide whatever they hold, so rounding would cost digits and save nothing; "
            "leave it out, or secure_aggregation: false"
        )
