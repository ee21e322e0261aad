"""What a plan asks of a source, and cannot have, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from fedgraft.common.protocol.routing import needs_moments
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.stages.aggregates import Mean, Moments, ServerOptimiser
from fedgraft.common.study.study import Study


def check_source(study: Study) -> Iterator[str]:
    """Every reason why stages that learn from a source, or from what it released, cannot work."""
    released = False
    for index, stage in enumerate(study.plan):
        where = f"plan.{index} ({stage.name})"
        if needs_moments(stage) and not released:
            key = "local.losses" if isinstance(stage.local, Gradient) else "local.of"
            yield f"{where}.{key}: no stage before this one has released moments; add one with aggregate: moments"
        released |= isinstance(stage.aggregate, Moments)
        if stage.joint_lambda is None:
            if stage.where == "source" and study.secure_aggregation:
                yield (
                    f"{where}.where: masks hide who sends what, and a sum needs three sites; use secure_aggregation: "
                    f"false"
                )
            continue
        if stage.where == "source":
            yield (
                f"{where}.joint_lambda: weighs the hospitals against the source, but the stage is for the source alone"
            )
        if not isinstance(stage.aggregate, Mean | ServerOptimiser) or stage.aggregate.weight != "examples":
            yield f"{where}.joint_lambda: is a weight in a mean over cases; use aggregate: mean with weight: examples"
        if study.secure_aggregation:
            yield f"{where}.joint_lambda: masks hide whose part is the source's; use secure_aggregation: false"
