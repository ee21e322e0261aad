"""Combinations that cannot work are refused before round 1, all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedgraft.common.checks.check_travel import check_compression, check_secure
from fedgraft.common.checks.faults.check_adapters import check_adapters, check_product
from fedgraft.common.checks.faults.check_clusters import check_clusters
from fedgraft.common.checks.faults.check_columns import check_columns, check_harmonisation_sums, check_harmonise
from fedgraft.common.checks.faults.check_ensemble import check_calibration, check_ensemble
from fedgraft.common.checks.faults.check_length import check_length
from fedgraft.common.checks.faults.check_losses import check_losses
from fedgraft.common.checks.faults.check_methods import check_methods
from fedgraft.common.checks.faults.check_metrics import check_metrics, check_thresholds
from fedgraft.common.checks.faults.check_ood import check_ood
from fedgraft.common.checks.faults.check_source import check_source
from fedgraft.common.checks.faults.check_stopping import check_stopping
from fedgraft.common.methods.memory.method import Ground
from fedgraft.common.protocol.routing import changed, own, stays
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.plan import (
    ADAPTERS,
    Gradient,
    Harmonise,
    Recalibrate,
    Role,
    Stage,
    Statistics,
    Tag,
)
from fedgraft.common.study.stages.aggregates import (
    ClosedForm,
    ComBat,
    Cox,
    Discriminant,
    KaplanMeier,
    Logistic,
    Moments,
    NearestMean,
    Newton,
    Nothing,
    Ridge,
    Standardise,
    Sums,
    Temper,
    Threshold,
)
from fedgraft.common.study.stages.losses import PluggedLoss, names_classes
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Segmentation, Task

_NOT_PRIVATE = {
    "convnext": "scales its blocks by parameters that belong to no layer",
    "vit": "has attention and position parameters that belong to no layer",
}
"""Backbones of which per-sample gradients are not known, and why; a site looks at the others' layers."""

_AGGREGATED_BY = {
    "features": (ClosedForm | Moments, "ridge, ncm, lda or moments"),
    "residuals": (Newton, "newton"),
    "curvature": (Logistic, "logistic"),
    "columns": (Standardise, "standardise"),
    "harmonisation": (ComBat, "combat"),
    "base_models": (Temper, "temper"),
    "answers": (Temper, "temper"),
    "distances": (Threshold, "threshold"),
    "survival": (KaplanMeier, "kaplan_meier"),
    "hazards": (Cox, "cox"),
}
_SINGLE = ("features", "residuals")
"""Sums that may travel with fewer digits."""
_FOLLOWED = ("survival", "hazards")
"""Sums over patients who are followed until an event comes."""
_APART = (Role.HEAD, Role.DOMAIN_DISCRIMINATOR, Role.SITE_EFFECTS)
"""What sites may have of their own and still have comparable features; the last make them so."""
_HEADS = (*_SINGLE, "curvature")
"""Sums that heads follow from."""


def check(study: Study, tags: Mapping[str, Tag]) -> list[str]:
    """Every reason why this study cannot work with a model of these tags, each with its key; none if it can."""
    faults = list(check_length(study))
    local_backbone = False
    bare: set[str] = set()
    for index, stage in enumerate(study.plan):
        where = f"plan.{index} ({stage.name})"
        faults += [f"{where}.{fault}" for fault in _stage(study, stage, tags)]
        if local_backbone and isinstance(stage.local, Statistics) and stage.local.of in _HEADS:
            faults.append(
                f"{where}.local: sums of features need the same backbone at all sites, but an earlier stage lets "
                "entries of it stay at the sites"
            )
        private = isinstance(stage.local, Gradient) and stage.local.private is not None
        if private and (roles := sorted({tags[key].role.value for key in bare if own(stage, tags, key)})):
            faults.append(
                f"{where}.share: {', '.join(roles)} would come from the site, where an earlier stage computed them "
                "without noise, so one patient could change the gradients of all others; share them, or do this first"
            )
        keeps = () if stage.personalise == "best" else stays(stage, tags)
        bare |= set() if private else set(keeps)
        local_backbone |= any(tags[key].role not in _APART for key in keeps)
    if isinstance(study.input, TableInput):
        faults += check_columns(study, study.input)
    if study.evaluate.every and study.split.val == 0 and study.evaluate.split == "val":
        faults.append("split.val: is 0, but evaluate.split is val; set evaluate.every to 0 or give val a share")
    faults += check_thresholds(study)
    faults += check_metrics(study)
    faults += check_source(study)
    faults += check_clusters(study, study.clusters, tags) if study.clusters is not None else []
    faults += check_ood(study, tags)
    faults += check_ensemble(study)
    faults += check_adapters(study, tags)
    faults += check_secure(study) if study.secure_aggregation else []
    if study.mask_heads and isinstance(study.input, TableInput):
        faults.append(f"tasks: {', '.join(study.mask_heads)} asks for masks, but the study's input is a table")
    if study.split.test == 0:
        faults.append("split.test: is 0, so the run could not be evaluated at its end")
    return faults


def _stage(study: Study, stage: Stage, tags: Mapping[str, Tag]) -> Iterator[str]:
    yield from check_compression(study, stage, tags)
    match stage.local:
        case Gradient():
            yield from _gradient(study, stage, stage.local, tags)
        case Statistics():
            yield from _statistics(study, stage, stage.local)
        case Recalibrate():
            yield from _recalibrate(stage, tags)
        case Harmonise():
            yield from check_harmonise(study, stage)


def _guessing(study: Study, local: Gradient) -> Iterator[str]:
    """What looks at the classes that the model names is for tasks that ask for classes."""
    others = [task.name for task in study.tasks if not isinstance(task, Task)]
    looks = [f"local.losses.{at} ({loss.kind})" for at, loss in enumerate(local.losses) if names_classes(loss)]
    looks += ["local.rollback"] if local.rollback is not None else []
    if others:
        yield from (f"{key}: looks at the classes that the model names, and {others[0]} asks for none" for key in looks)


def _kinds(study: Study, local: Gradient) -> Iterator[str]:
    """What a plug-in's loss is for must be asked."""
    asked = {task.kind for task in study.tasks}
    for at, loss in enumerate(local.losses):
        if isinstance(loss, PluggedLoss) and loss.facts.of_tasks and asked.isdisjoint(loss.facts.tasks):
            wanted = " or ".join(sorted(loss.facts.tasks))
            yield f"local.losses.{at} ({loss.kind}): is for {wanted}, and the study asks for {', '.join(sorted(asked))}"


def _gradient(study: Study, stage: Stage, local: Gradient, tags: Mapping[str, Tag]) -> Iterator[str]:
    yield from _private(study, stage, local, tags)
    moves = changed(stage, tags)
    if all(tags[key].role is Role.NORM_STATS for key in moves):
        yield "local.train: selects nothing that gradients could train in this model"
    yield from check_losses(stage, local, tags)
    yield from check_methods(Ground(study, stage, tags, {}), local)
    yield from _guessing(study, local)
    yield from _kinds(study, local)
    yield from check_stopping(study, stage, local, tags)
    yield from check_product(stage, tags)
    if stage.personalise == "best":
        yield from _only_where_it_is_better(study, stage, local)
    if local.augment is not None and isinstance(study.input, TableInput):
        yield "local.augment: is for images, but the study's input is a table"
    if isinstance(stage.aggregate, Sums):
        yield f"aggregate: {stage.aggregate.kind} aggregates sums, but gradient work gives entries; use mean or nothing"
    travels = [key for key in moves if tags[key] in stage.share]
    if not isinstance(stage.aggregate, Nothing) and not travels:
        yield (
            "share: nothing that is trained travels, so there is nothing to aggregate; share more, or "
            "aggregate: nothing"
        )
    if isinstance(stage.aggregate, Nothing) and travels:
        yield "aggregate: what is shared must be aggregated; use aggregate: mean, or share: none"
    stray = [key for key in moves if tags[key] not in stage.share and tags[key] not in stage.keep]
    if stray:
        roles = sorted({tags[key].role.value for key in stray})
        yield f"keep: {', '.join(roles)} is trained, but neither shared nor declared to stay at the site (keep)"


def _only_where_it_is_better(study: Study, stage: Stage, local: Gradient) -> Iterator[str]:
    """What a stage cannot be whose result a site uses only where it is better."""
    if not isinstance(stage.aggregate, Nothing):
        yield "personalise: best is for what sites train for themselves; use share: none and aggregate: nothing"
    if sum(other.personalise == "best" for other in study.plan) > 1:
        yield "personalise: a site has one model of its own to choose; let one stage alone say best"
    if study.split.val == 0:
        yield "personalise: best is told by validation cases, and split.val is 0; give val a share"
    if local.methods or stage.early_stopping is not None or stage.weight_averaging is not None:
        yield "personalise: best goes with plain work; leave methods, early_stopping and weight_averaging out"


def only_heads_because(backbone: str) -> str | None:
    """Why nothing but heads can be trained privately on a backbone of this name; None if more can."""
    return next(
        (why for family, why in _NOT_PRIVATE.items() if backbone.removeprefix("timm/").startswith(family)), None
    )


def _private(study: Study, stage: Stage, local: Gradient, tags: Mapping[str, Tag]) -> Iterator[str]:
    """What would void the guarantee, or cannot be computed, if this work is to be private."""
    if local.private is None:
        return
    moves = changed(stage, tags)
    if any(tags[key].role is Role.NORM_STATS for key in moves):
        yield "local.fixed_norm_stats: running statistics are not noised, so they must stay; set it to true"
    if local.class_weights != "none":
        yield "local.class_weights: weights from the site's own label counts are released with every step; use none"
    if local.epochs is not None:
        yield "local.epochs: how many steps an epoch takes depends on the data; private work is counted in steps"
    if local.clip_norm is not None:
        yield (
            "local.clip_norm: clips the mean of a batch, which protects nobody; private.max_grad_norm clips every unit"
        )
    if study.mask_heads:
        yield (
            f"local.private: gradients of single cases through the decoder of {', '.join(study.mask_heads)} are not "
            "built; leave the task out"
        )
    backbone = study.model.backbone
    why = only_heads_because(backbone)
    if why is not None and any(tags[key].role not in {Role.HEAD} | ADAPTERS for key in moves):
        yield (
            f"local.train: {backbone} {why}, so it cannot be trained privately; train heads, or give it adapters "
            "(model.adapters) and train adapters_and_heads"
        )


def _statistics(study: Study, stage: Stage, local: Statistics) -> Iterator[str]:
    fits, kinds = _AGGREGATED_BY[local.of]
    if not isinstance(stage.aggregate, fits):
        yield f"aggregate: sums of {local.of} are aggregated by {kinds}, not by {stage.aggregate.kind}"
    if local.of == "columns" and not isinstance(study.input, TableInput):
        yield "local.of: columns are those of a table, but the study's input is images"
    if local.of == "distances" and local.private is not None:
        yield "local.private: counts of distances are not noised, and nor are the moments that they are from; not built"
    yield from _survival(study, stage, local)
    yield from check_harmonisation_sums(study, stage, local)
    if local.of in _HEADS:
        yield from _other_kinds(study, stage, local)
    yield from check_calibration(study, stage, local)
    if local.precision != "double" and (local.of not in _SINGLE or study.secure_aggregation):
        yield "local.precision: is for sums of features without masks; masked numbers are all of one size"
    if local.retain_statistics and not isinstance(stage.aggregate, ClosedForm):
        yield (
            f"local.retain_statistics: is for heads that sites can leave and join, but {stage.aggregate.kind} "
            f"solves none"
        )
    if local.retain_statistics and study.secure_aggregation:
        yield (
            "local.retain_statistics: masks hide each site's sums, so there are none to keep, and no site "
            "can leave without a "
            "new run; use secure_aggregation: false, or leave it out"
        )
    if stage.rounds > 1 and local.of not in ("residuals", "curvature", "hazards"):
        yield "rounds: sums do not change from round to round; one is enough"
    if local.of in _HEADS and stage.where == "unlabelled":
        yield "where: a closed-form head needs labels, but the stage is for unlabelled sites"
    if isinstance(stage.aggregate, Moments) and local.private is not None:
        yield "local.private: noised sums clip the features, so their moments would be of something else; not built"
    if local.of in _HEADS and Role.HEAD not in stage.share.roles and not isinstance(stage.aggregate, Moments):
        yield "share: the solved heads must reach the sites; share: heads"


def _survival(study: Study, stage: Stage, local: Statistics) -> Iterator[str]:
    """What counts of who left when need."""
    if (local.survival is None) == (local.of in _FOLLOWED):
        yield "local.survival: time, event and ends are what of: survival or hazards needs, and nothing else"
    if local.survival is not None:
        yield from local.survival.faults(study.tasks_by_name)
        if stage.where == "unlabelled":
            yield "where: times and events are labels, but the stage is for unlabelled sites"
        if local.of == "hazards" and local.private is not None:
            yield "local.private: sums of exp(x b) x x' have no bound that could be noised; not built"
        if local.of == "hazards" and not study.heads:
            yield "local.of: hazards are of features, and nothing that has features is asked"
        if local.split != "train":
            yield "local.split: survival is counted over all patients, since no model learns from it; leave it out"


def _other_kinds(study: Study, stage: Stage, local: Statistics) -> Iterator[str]:
    """What sums of features cannot do for tasks that do not ask for one class."""
    other = [task.name for task in study.tasks if not isinstance(task, Task | Segmentation)]
    if not study.heads:
        yield "local: masks have no head that sums of features could solve, and nothing else is asked"
    if other and isinstance(stage.aggregate, NearestMean | Discriminant):
        yield (
            f"aggregate: {stage.aggregate.kind} is for classes, but {', '.join(other)} asks for something "
            f"else; use ridge"
        )
    if other and local.private is not None:
        yield f"local.private: the bound of noised sums is known for classes alone, not for {', '.join(other)}"
    if study.mask_heads and local.private is not None:
        yield f"local.private: noised sums and the masks of {', '.join(study.mask_heads)} do not go together"
    if isinstance(stage.aggregate, Ridge) and stage.aggregate.ridge_penalty == "loso" and local.private is not None:
        yield "aggregate.ridge_penalty: loso measures errors on sums that noise has spoilt; use auto, or give a number"


def _recalibrate(stage: Stage, tags: Mapping[str, Tag]) -> Iterator[str]:
    if not changed(stage, tags):
        yield "local: this backbone has no norm layers with running statistics to recalibrate"
    if not isinstance(stage.aggregate, Nothing):
        yield "aggregate: recalibration shares nothing; use aggregate: nothing"
    if stage.share.roles:
        yield "share: recalibrated statistics are the site's own; use share: none"
    if Role.NORM_STATS not in stage.keep.roles:
        yield "keep: say that the site keeps its norm statistics; keep: norm_stats"
    if stage.rounds > 1:
        yield "rounds: recalibration gives the same result every time; one is enough"
