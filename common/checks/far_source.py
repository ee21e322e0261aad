"""Weights from far away, as ImageNet's, in a study whose first step tears at them, or whose images are too small."""

from __future__ import annotations

from fedgraft.common.models.weights import WeightsManifest
from fedgraft.common.protocol.routing import Tags, changed
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.plan import Gradient, Role, Stage
from fedgraft.common.study.stages.aggregates import ClosedForm, Logistic, Newton
from fedgraft.common.study.study import Study

TWO_STEPS = "probe_finetune"
"""The preset that such weights need."""


def weights_advice(study: Study, manifest: WeightsManifest | None, tags: Tags) -> tuple[str, ...]:
    """What people should know who bring such weights, in sentences; none where all is well."""
    return tuple(filter(None, (torn(study, manifest, tags), shrunk(study, manifest))))


def shrunk(study: Study, manifest: WeightsManifest | None) -> str:
    """A sentence where weights from elsewhere are shown images of less than half their pixels; "" where all is well."""
    if manifest is None or manifest.input is None or not manifest.is_brought or not isinstance(study.input, ImageInput):
        return ""
    wanted, shown = manifest.input.size, study.input.size
    if 2 * shown >= wanted:
        return ""
    return (
        f"{study.model.weights} was trained on images of {wanted} pixels, and the study shows it {shown}. On real "
        f"chest X-rays a ridge on ImageNet's features had .86 AUROC at 64 pixels, .88 when the same images were "
        f"enlarged to 224. input.size: {wanted} enlarges what is smaller; the time of a step grows with its square."
    )


def torn(study: Study, manifest: WeightsManifest | None, tags: Tags) -> str:
    """A sentence where weights from elsewhere are trained without what they need first; "" where all is well."""
    if manifest is None or manifest.input is None or not manifest.is_brought or study.model.heads == "weights":
        return ""
    at = next((at for at, stage in enumerate(study.plan) if _trains_features(stage, tags)), None)
    if at is None:
        return ""
    why = [] if any(_makes_heads(stage, tags) for stage in study.plan[:at]) else ["its heads are still random"]
    moves = any(tags[key].role is Role.NORM_STATS for key in changed(study.plan[at], tags))
    why += ["its norm statistics move"] if moves else []
    if not why:
        return ""
    return (
        f"{study.model.weights} comes from elsewhere ({manifest.trained_on}). Stage {study.plan[at].name} trains its "
        f"features while {' and '.join(why)}, by which they can be lost: on real chest X-rays ImageNet's had .62 AUROC "
        f"so, and .88 in two steps. method: {TWO_STEPS} solves heads first and keeps norm statistics as they came."
    )


def _trains_features(stage: Stage, tags: Tags) -> bool:
    roles = {tags[key].role for key in changed(stage, tags)}
    return isinstance(stage.local, Gradient) and bool(roles - {Role.HEAD, Role.DOMAIN_DISCRIMINATOR})


def _makes_heads(stage: Stage, tags: Tags) -> bool:
    """Whether heads are solved or trained in this stage."""
    solves = isinstance(stage.aggregate, ClosedForm | Newton | Logistic)
    return solves or any(tags[key].role is Role.HEAD for key in changed(stage, tags))
