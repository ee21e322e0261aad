"""Low-rank adapters that nobody trains, that are not there, or that cannot be aggregated as is asked."""

from __future__ import annotations

from collections.abc import Iterator

from fedgraft.common.protocol.routing import Tags, changed, sent
from fedgraft.common.study.plan import ADAPTERS, Gradient, Stage
from fedgraft.common.study.stages.aggregates import AdaptersProduct
from fedgraft.common.study.study import Study


def check_adapters(study: Study, tags: Tags) -> Iterator[str]:
    """Adapters and what the plan trains must go together."""
    for index, stage in enumerate(study.plan):
        if study.model.adapters is None and isinstance(stage.local, Gradient) and stage.local.train.roles & ADAPTERS:
            yield (
                f"plan.{index} ({stage.name}).local.train: selects adapters, and the model has none; write "
                "model.adapters: {rank: 8}"
            )
    trained = (tags[key].role for stage in study.plan for key in changed(stage, tags))
    if study.model.adapters is not None and study.plan and not ADAPTERS.intersection(trained):
        yield (
            "model.adapters: no stage trains them; train adapters_and_heads, or leave them out (all is all of the "
            "network itself)"
        )


def check_product(stage: Stage, tags: Tags) -> Iterator[str]:
    """Products need both factors of all adapters."""
    if isinstance(stage.aggregate, AdaptersProduct) and not {tags[key].role for key in sent(stage, tags)} >= ADAPTERS:
        yield (
            "aggregate: adapters_product averages what A and B give together, so both must be trained and shared; "
            "share: adapters or adapters_and_heads, or use aggregate: mean"
        )


def check_separated(study: Study, tags: Tags, unseparated: str) -> Iterator[str]:
    """Private work needs each case's own gradient, which adapters of the layer `unseparated` have not; "" has all."""
    for index, stage in enumerate(study.plan if unseparated else ()):
        if not (isinstance(stage.local, Gradient) and stage.local.private is not None):
            continue
        if any(tags[key].role in ADAPTERS for key in changed(stage, tags)):
            yield (
                f"plan.{index} ({stage.name}).local.train: {unseparated} of {study.model.backbone} does not see each "
                "case once, by itself, as in attention over windows, where parts of a case stand as rows of their own: "
                "its adapter has no gradient by case to clip; train heads, or take a backbone without windows"
            )
