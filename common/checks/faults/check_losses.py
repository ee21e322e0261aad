"""Combinations of a gradient stage's losses that cannot work, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fedgraft.common.protocol.routing import changed, stays
from fedgraft.common.study.plan import (
    Gradient,
    Role,
    Stage,
    Tag,
)
from fedgraft.common.study.stages.losses import (
    Adversarial,
    Discrepancy,
    Distill,
    InfoMax,
    Loss,
    LossScope,
    PluggedLoss,
    Proximal,
    PseudoLabel,
    Requirement,
    Supervised,
    requirements,
)

Tags = Mapping[str, Tag]


def check_losses(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:
    """Every reason why these losses cannot be minimised in this stage."""
    if stage.where == "unlabelled" and Requirement.LABELS in requirements(local.losses):
        yield "where: the supervised loss needs labels, but the stage is for unlabelled sites"
    if local.rollback is not None and local.private is not None:
        yield "local.rollback: whether work was undone would tell of the patients; leave it out of private work"
    if all(loss.scope is LossScope.REGULARISER for loss in local.losses):
        yield "local.losses: none of them looks at a case, so there is nothing to learn"
    for at, loss in enumerate(local.losses):
        key = f"local.losses.{at} ({loss.kind})"
        for fault in _CHECKS.get(type(loss), _nothing)(stage, local, tags):
            yield f"{key}: {fault}"
        if local.private is not None and (why := _not_private(loss)):
            yield f"{key}: {why}"


def _not_private(loss: Loss) -> str:
    """Why a loss cannot be part of private work; "" if it can."""
    match loss:
        case Proximal() | Supervised(of="target"):
            return ""
        case PluggedLoss() if loss.private:
            return ""
        case PluggedLoss(scope=LossScope.PER_SAMPLE):
            return "it looks at features, or at no labels; private work learns from a case's outputs and labels alone"
        case _ if loss.scope is LossScope.PER_BATCH:
            return "it compares the cases of a batch, so no case has a gradient of its own that could be clipped"
    return "it is not built for private work, which learns from the site's own labels alone"


def _nothing(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:  # noqa: ARG001 - one form for all checks
    yield from ()


def _proximal(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:
    to_common = any(isinstance(loss, Proximal) and loss.to == "global" for loss in local.losses)
    if to_common and not stays(stage, tags):
        yield (
            "pulls what a site keeps to the common model, but nothing that is trained is kept; keep something, or use "
            "to: round"
        )


def _self_taught(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:  # noqa: ARG001 - one form for all
    if local.rollback is None:
        yield "takes the model's own guesses for the truth, which can ruin it; set rollback: {} to have that undone"


def _features(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:  # noqa: ARG001 - one form for all
    if all(tags[key].role in (Role.HEAD, Role.DOMAIN_DISCRIMINATOR) for key in changed(stage, tags)):
        yield "moves features, but nothing below the heads is trained; train more"


def _distill(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:  # noqa: ARG001 - one form for all
    if sum(isinstance(loss, Distill) for loss in local.losses) > 1:
        yield "one stage has one teacher; several models teach as an ensemble"


_CHECKS: Mapping[type, Callable[[Stage, Gradient, Tags], Iterator[str]]] = {
    Proximal: _proximal,
    Adversarial: _features,
    Discrepancy: _features,
    Distill: _distill,
    InfoMax: _self_taught,
    PseudoLabel: _self_taught,
}
