"""What a study with clusters of sites cannot ask, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from fedgraft.common.methods.memory.carried import methods_of
from fedgraft.common.protocol.routing import Tags, changed, privacy_request, releases_plainly, retains_statistics
from fedgraft.common.secure_aggregation.masking import FEWEST
from fedgraft.common.study.clusters import AnyClusters, ByLoss, NamedClusters, begins_at, groups_of, rests_on
from fedgraft.common.study.plan import Role, Stage, Statistics
from fedgraft.common.study.stages.aggregates import (
    ClosedForm,
    ComBat,
    Cox,
    KaplanMeier,
    Logistic,
    Moments,
    Newton,
    Standardise,
    Sums,
    Threshold,
)
from fedgraft.common.study.study import Study


def check_clusters(study: Study, clusters: AnyClusters, tags: Tags) -> Iterator[str]:
    """Every reason why the clusters cannot be made, or the stages after they begin cannot work with them."""
    begin = begins_at(clusters, study.plan)
    if rests_on(clusters) is not None:
        yield from _sums(study.plan[begin - 1])
    if isinstance(clusters, ByLoss):
        yield from _by_loss(study, clusters, tags)
    if study.secure_aggregation:
        yield from _secure(study, clusters)
    if study.evaluate.operating_point is not None:
        yield (
            "evaluate.operating_point: each cluster's model would need one of its own, which is not built; leave it "
            "out, or clusters"
        )
    whole = all(tag in clusters.own for tag in tags.values())
    for index, stage in enumerate(study.plan[begin:], start=begin):
        for fault in _stage(stage, whole=whole):
            yield f"plan.{index} ({stage.name}).{fault}"
    if not any(has_own(stage, tags, clusters) for stage in study.plan[begin:]):
        yield (
            "clusters.own: no stage after the clusters begin changes any of these entries, so that all would have one "
            "model; choose others"
        )


def has_own(stage: Stage, tags: Tags, clusters: AnyClusters) -> bool:
    """Whether what a stage aggregates is, or has in it, entries of which each cluster has its own."""
    if not isinstance(stage.aggregate, Sums):
        return any(tags[key] in clusters.own for key in changed(stage, tags) if tags[key] in stage.share)
    solved = Role.SCALE if isinstance(stage.aggregate, Standardise | ComBat) else Role.HEAD
    return any(tag in clusters.own for tag in tags.values() if tag.role is solved)


def _sums(stage: Stage) -> Iterator[str]:
    local, place = stage.local, f"clusters.stage: {stage.name}"
    if not isinstance(local, Statistics) or local.of != "features":
        yield f"{place} sends no sums of features, by which sites could be compared; add one, such as a ridge probe"
    elif local.private is not None:
        yield f"{place} adds noise to its sums, and what is noise would be taken for a difference; tell the clusters"
    if stage.where == "source":
        yield f"{place} is for the source alone, and clusters are of hospitals"


def _by_loss(study: Study, clusters: ByLoss, tags: Tags) -> Iterator[str]:
    """What keeps sites from choosing, or would make a choice one that means nothing."""
    begin = begins_at(clusters, study.plan)
    if clusters.stage is None:
        heads = any(tag.role is Role.HEAD and tag in clusters.own for tag in tags.values())
        brought = study.model.heads == "weights" or bool(study.model.base_models)
        solved = any(isinstance(stage.aggregate, ClosedForm | Newton | Logistic) for stage in study.plan[:begin])
        if brought or solved or (study.model.weights and not heads):
            yield (
                "clusters.by: the models would all begin with the same heads, and no site could choose; give "
                "`stage`, by whose sums they begin apart, or let each have new heads of its own (model.heads, own)"
            )
    for index, stage in enumerate(study.plan[begin:], start=begin):
        place = f"plan.{index} ({stage.name})."
        if privacy_request(stage) is not None:
            yield (
                f"{place}local.private: which model a site chooses tells of its patients, and no noise hides it; "
                "tell the clusters, by: name"
            )
        if stage.compress.kind != "none":
            yield (
                f"{place}compress: what rounding leaves out is added to the next change of the same model, and a site "
                "may choose another; leave it out"
            )
        if stage.where == "unlabelled":
            yield f"{place}where: a site without labels cannot choose by loss; tell the clusters, by: name"
        if remembers := [method.kind for method in methods_of(stage)]:
            yield (
                f"{place}local: what {', '.join(remembers)} remembers is of one model, and a site may choose another; "
                "make clusters by name or by sums"
            )
    if not any(releases_plainly(stage, tags) for stage in study.plan[begin:]):
        yield "clusters.by: a choice leaves with entries or sums alone, and no stage of these sends any"


def _secure(study: Study, clusters: AnyClusters) -> Iterator[str]:
    if isinstance(clusters, ByLoss):
        yield (
            "clusters.by: under masks nobody may see which model a site has taken, and a sum over those that took one "
            "could be of a single site; tell the clusters, by: name"
        )
        return
    told = groups_of(clusters)
    if not told:
        yield (
            "clusters.by: masks hide each site's sums, so that nobody can compare them; name groups of sites whose "
            f"sums may be (clusters.groups, each of {FEWEST} or more), or tell the clusters, by: name"
        )
        return
    key = "sites" if isinstance(clusters, NamedClusters) else "groups"
    for name, sites in told.items():
        if len(sites) < FEWEST:
            yield f"clusters.{key}.{name}: has {len(sites)} sites, and a masked sum needs {FEWEST}"
    if isinstance(clusters, NamedClusters) and begins_at(clusters, study.plan):
        yield (
            "clusters.begin: a site masks with one group alone in a study, for the sum of all less that of a cluster "
            "would tell of the others; let clusters begin with the first stage"
        )


def _stage(stage: Stage, *, whole: bool) -> Iterator[str]:
    """What a stage after the clusters begin may not be; `whole` says that they share no entry."""
    if stage.where == "source" or stage.joint_lambda is not None:
        yield "where: a source is in no cluster; let its stage come before clusters begin, or leave joint_lambda out"
    if isinstance(stage.aggregate, Moments | Threshold | KaplanMeier | Cox):
        yield (
            f"aggregate: {stage.aggregate.kind} describes the sites of one model; let it come before clusters begin, "
            "or leave it out (ood_detection)"
        )
    if retains_statistics(stage):
        yield "local.retain_statistics: sites leave and join one model, and here there are several; leave it out"
    remembers = [method.kind for method in methods_of(stage)]
    if remembers and not whole:
        yield (
            f"local: what {', '.join(remembers)} remembers of entries that clusters share would be of one cluster; use "
            "clusters.own: all"
        )
