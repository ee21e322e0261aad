"""Weights from far away, as ImageNet's, or none, in a study whose first steps tear at them or at what rests on them."""

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
    return tuple(filter(None, (torn(study, manifest, tags), shrunk(study, manifest), unsettled(study, tags))))


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


def unsettled(study: Study, tags: Tags) -> str:
    """A sentence where heads are solved on features of random entries that then change their scale; "" elsewhere."""
    if study.model.weights or study.model.base_models or not isinstance(study.input, ImageInput):
        return ""
    solved = next((at for at, stage in enumerate(study.plan) if _solves(stage)), len(study.plan))
    after = next((stage for stage in study.plan[solved:] if _trains_features(stage, tags)), None)
    if after is None or not any(tags[key].role is Role.NORM_STATS for key in changed(after, tags)):
        return ""
    return (
        f"Stage {study.plan[solved].name} solves heads on features of random entries, whose scale changes when stage "
        f"{after.name} moves norm statistics: what the model then says is near 0 or 1 whatever it sees (on real chest "
        "X-rays a loss of 58 a case, where FedAvg had .41). Train heads with the rest (method: fedavg), or bring "
        "weights."
    )


def _trains_features(stage: Stage, tags: Tags) -> bool:
    roles = {tags[key].role for key in changed(stage, tags)}
    return isinstance(stage.local, Gradient) and bool(roles - {Role.HEAD, Role.DOMAIN_DISCRIMINATOR})


def _makes_heads(stage: Stage, tags: Tags) -> bool:
    """Whether heads are solved or trained in this stage."""
    return _solves(stage) or any(tags[key].role is Role.HEAD for key in changed(stage, tags))


def _solves(stage: Stage) -> bool:
    return isinstance(stage.aggregate, ClosedForm | Newton | Logistic)
