"""Combinations of a gradient stage's terms that cannot work, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fedgraft.common.protocol.routing import changed, sent, stays
from fedgraft.common.study.aggregates import Mean
from fedgraft.common.study.losses import (
    Adversarial,
    Anchor,
    Control,
    Coupling,
    Discrepancy,
    Distill,
    InfoMax,
    Need,
    PseudoLabel,
    Supervised,
    needs,
)
from fedgraft.common.study.plan import (
    Gradient,
    Role,
    Stage,
    Tag,
)

Tags = Mapping[str, Tag]


def check_terms(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:
    """Every reason why these terms cannot be minimised in this stage."""
    if stage.where == "unlabelled" and Need.LABELS in needs(local.terms):
        yield "where: the supervised loss needs labels, but the stage is for unlabelled sites"
    if local.fallback is not None and local.private is not None:
        yield "local.fallback: whether work was undone would tell of the patients; leave it out of private work"
    if all(term.coupling is Coupling.NONE for term in local.terms):
        yield "local.terms: none of them looks at a case, so there is nothing to learn"
    for at, term in enumerate(local.terms):
        key = f"local.terms.{at} ({term.kind})"
        for fault in _CHECKS.get(type(term), _nothing)(stage, local, tags):
            yield f"{key}: {fault}"
        if local.private is not None and (why := _not_private(term)):
            yield f"{key}: {why}"


def _not_private(term: object) -> str:
    """Why a term cannot be part of private work; "" if it can."""
    match term:
        case Anchor() | Supervised(of="target"):
            return ""
        case Control():
            return "control variates are not built for private work; use mean without them, or an anchor"
        case _ if getattr(term, "coupling", None) is Coupling.BATCH:
            return "it compares the cases of a batch, so no case has a gradient of its own that could be clipped"
    return "it is not built for private work, which learns from the site's own labels alone"


def _nothing(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:  # noqa: ARG001 - one form for all checks
    yield from ()


def _anchor(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:
    to_common = any(isinstance(term, Anchor) and term.to == "global" for term in local.terms)
    if to_common and not stays(stage, tags):
        yield (
            "pulls what a site keeps to the common model, but nothing that is trained is kept; keep something, or use "
            "to: round"
        )


def _control(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:
    if local.optimiser != "sgd" or local.momentum:
        yield "steps must be plain for their sum to say what they followed; use optimiser: sgd and momentum: 0"
    if local.steps is None:
        yield "the coordinator must know how many steps every site takes; give steps, not epochs"
    if local.clip_norm is not None:
        yield "clipped steps do not add up to what they followed; leave clip_norm out"
    if not isinstance(stage.merge, Mean):
        yield f"needs the sites' mean, but the merge is {stage.merge.kind}; use merge: mean"
    if not sent(stage, tags):
        yield "nothing that is trained is shared, so there is no drift to correct"


def _self_taught(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:  # noqa: ARG001 - one form for all
    if local.fallback is None:
        yield "takes the model's own guesses for the truth, which can ruin it; set fallback: {} to have that undone"


def _features(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:  # noqa: ARG001 - one form for all
    if all(tags[key].role in (Role.HEAD, Role.CRITIC) for key in changed(stage, tags)):
        yield "moves features, but nothing below the heads is trained; train more"


def _distill(stage: Stage, local: Gradient, tags: Tags) -> Iterator[str]:  # noqa: ARG001 - one form for all
    if sum(isinstance(term, Distill) for term in local.terms) > 1:
        yield "one stage has one teacher; several models teach as a committee"


_CHECKS: Mapping[type, Callable[[Stage, Gradient, Tags], Iterator[str]]] = {
    Anchor: _anchor,
    Control: _control,
    Adversarial: _features,
    Discrepancy: _features,
    Distill: _distill,
    InfoMax: _self_taught,
    PseudoLabel: _self_taught,
}
