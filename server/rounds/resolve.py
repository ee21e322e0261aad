"""Sites that leave or join the closed-form heads of a finished run, without any site working again.

Heads follow from sums over sites. Without a site's sums, or with those of more sites, they are the heads that the run
would have ended with, up to rounding. That is so only where nothing else in the model has learnt from the site.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import FedgraftError, InputError, RunError
from fedgraft.common.base.files import private_folder, read_sealed, sealed, write_json
from fedgraft.common.models.initialise import make_model
from fedgraft.common.models.weights import WeightsManifest, load_weights, save_weights
from fedgraft.common.protocol.instructions import Arrays, Update
from fedgraft.common.protocol.routing import Tags, sent
from fedgraft.common.study.plan import Role, Stage, Statistics
from fedgraft.common.study.stages.aggregates import ClosedForm, ComBat, Standardise
from fedgraft.common.study.study import Study
from fedgraft.server.aggregation.aggregator import HeadAggregator, aggregator_for
from fedgraft.server.runs.retained_statistics import RetainedStatistics, features_digest
from fedgraft.server.runs.run_folder import RunFolder

SCHEMA = 1
_FACTS = "resolved.json"
_AGAIN = "Run the study again without the site."


@dataclass(frozen=True)
class Finished:
    """A finished run whose heads were solved from sums that it kept."""

    path: Path
    study: Study
    tags: Tags
    at: int
    """The place in the plan of the stage that solved the heads."""
    manifest: WeightsManifest
    state: Mapping[str, np.ndarray]
    kept: RetainedStatistics
    shaped: Mapping[str, Sequence[str]]
    """By stage that changed the model before the heads were solved: the sites that took part in it."""

    @property
    def stage(self) -> Stage:
        """The stage at place `at` of the plan."""
        return self.study.plan[self.at]


@dataclass(frozen=True)
class Resolved:
    """Whose sums the new heads are from, who left, who joined, and the ridge penalties where the sums chose them."""

    sites: tuple[str, ...]
    left: tuple[str, ...]
    joined: tuple[str, ...]
    ridge_penalties: Mapping[str, float]


def resolve(run: Path, out: Path, without: Sequence[str] = (), others: Sequence[Path] = ()) -> Resolved:
    """Write the model of `run` without some of its sites, or with those of other runs, into the new folder `out`.

    InputError or RunError where the heads would not be those of a run of exactly these sites on the same features.
    """
    if not without and not others:
        raise InputError("Nobody leaves and nobody joins.", fix="Give --without SITE or --with RUN.")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty.", fix="Choose another --out.")
    demand_place(out)
    own = _finished(run)
    if reasons := list(_influences(own, without)):
        raise RunError(f"{run}: " + " ".join(reasons), fix=_AGAIN)
    sites = dict(own.kept.sites)
    for name in without:
        if name not in sites:
            raise InputError(f"{run}: keeps no sums of {name}; it has: {', '.join(own.kept.sites)}.")
        del sites[name]
    joined: list[str] = []
    shaped = dict(own.shaped)
    for path in others:
        other = _finished(path)
        more = _joining(own, other)
        shaped = {name: [*shaped.get(name, ()), *other.shaped.get(name, ())] for name in {**shaped, **other.shaped}}
        if both := sorted(set(more) & set(sites)):
            raise InputError(f"{path}: {', '.join(both)} would be in the heads twice.")
        sites |= more
        joined += more
    needed = own.study.rounds.min_sites or 1
    if len(sites) < needed:
        raise RunError(f"{run}: {len(sites)} sites would be left, and rounds.min_sites of the study is {needed}.")
    heads, ridge_penalties = solve(own.stage, own.tags, sites, own.state)
    found = Resolved(tuple(sorted(sites)), tuple(sorted(without)), tuple(sorted(joined)), ridge_penalties)
    facts = {"schema": SCHEMA, "study_digest": own.study.digest, "stage": own.stage.name, "measured": False}
    facts |= {"from": own.manifest.sha256, "sites": found.sites, "left": found.left, "joined": found.joined}
    kept = RetainedStatistics(own.stage.name, own.kept.features, sites)
    with private_folder(out):
        _write(out, own, dict(own.state) | heads, kept)
        write_json(out / _FACTS, sealed(facts | {"ridge_penalties": dict(ridge_penalties), "shaped": shaped}))
    return found


def solve(
    stage: Stage, tags: Tags, sites: Mapping[str, Arrays], state: Arrays
) -> tuple[dict[str, np.ndarray], Mapping[str, float]]:
    """The heads from the sites' sums, added in the order in which a run adds them, and the ridge penalties chosen."""
    aggregator = aggregator_for(stage, tags)
    assert isinstance(aggregator, HeadAggregator)
    for name in sorted(sites):
        aggregator.add(Update(0, sites[name], {}, {}, {}))
    return aggregator.result(state), aggregator.ridge_penalties


def _finished(path: Path) -> Finished:
    folder = RunFolder(path)
    study = folder.study()
    if study.secure_aggregation:
        raise RunError(
            f"{path}: the study was masked, so the coordinator has only ever seen sums over all sites.",
            fix="Run the study again with the sites that it should be of.",
        )
    at = max((at for at, stage in enumerate(study.plan) if isinstance(stage.aggregate, ClosedForm)), default=None)
    if at is None:
        raise RunError(f"{path}: no stage of its plan solves heads from sums, so nobody can leave or join.", fix=_AGAIN)
    local = study.plan[at].local
    if not (isinstance(local, Statistics) and local.retain_statistics):
        raise RunError(
            f"{path}: the study did not say that the sites' sums are kept, so they were not.",
            fix=f"Set plan.{at}.local.retain_statistics (or method.retain_statistics) to true, and run it again.",
        )
    try:
        manifest, state = load_weights(str(path))
        kept = RetainedStatistics.read(path, study.plan[at].name)
    except FedgraftError as error:
        raise RunError(f"{path}: is no finished run with sums: {error}") from None
    tags = make_model(study).tags()
    if features_digest(state, tags) != kept.features:
        after = [stage.name for stage in study.plan[at + 1 :] if _moves(stage, tags)] or ["a later change"]
        raise RunError(
            f"{path}: {', '.join(after)} changed what the features come from after the sums were taken, so heads from "
            "the sums would not fit the model.",
            fix=_AGAIN,
        )
    solved = frozenset(key for key, tag in tags.items() if tag.role is Role.HEAD and tag.task in study.heads)
    shaped = _shaped(path, study.plan[:at], tags, solved)
    return Finished(path, study, tags, at, manifest, state, kept, shaped)


def _influences(own: Finished, without: Sequence[str]) -> Iterator[str]:
    """Why heads solved anew would not be those of a run without these sites."""
    for stage in own.study.plan[own.at + 1 :]:
        if _moves(stage, own.tags):
            yield f"Stage {stage.name!r} went on from the solved heads, in which all sites have a part."
    for name, sites in own.shaped.items():
        if there := sorted(set(sites) & set(without)):
            yield (
                f"{', '.join(there)} took part in stage {name!r}, which set what the features come from: "
                "that influence would stay in the model."
            )


def _moves(stage: Stage, tags: Tags) -> bool:
    """Whether a stage changes the model that all share, other than by heads solved from sums."""
    return isinstance(stage.aggregate, Standardise | ComBat) or bool(sent(stage, tags))


def _joining(own: Finished, other: Finished) -> dict[str, Arrays]:
    """The sums of another run's sites. RunError unless they are of the same question and the same features."""
    mine, theirs = own.study, other.study
    different = {
        "tasks": mine.tasks != theirs.tasks,
        "input": mine.input != theirs.input,
        "model.backbone": mine.model.backbone != theirs.model.backbone,
        f"local of stage {own.stage.name!r}": own.stage.local != other.stage.local,
        "the entries that features come from": own.kept.features != other.kept.features,
    }
    if faults := [what for what, wrong in different.items() if wrong]:
        what = " and other ".join(faults)
        raise RunError(
            f"{other.path}: its sums do not add up with those of {own.path}, for it has other {what}.",
            fix="Let the new site run the same plan on the same weights.",
        )
    return dict(other.kept.sites)


def _write(out: Path, own: Finished, state: Arrays, kept: RetainedStatistics) -> None:
    facts = own.manifest.model_dump(exclude={"format", "sha256", "keys"})
    words = f"heads solved anew from the sums of {len(kept.sites)} sites; before: {own.manifest.how}"
    RunFolder(out).write_study(own.study)
    kept.write(out)
    save_weights(out, state, facts | {"how": words, "trained_on": f"study {own.study.name}, resolved"})


def _shaped(path: Path, before: Sequence[Stage], tags: Tags, solved: frozenset[str]) -> Mapping[str, Sequence[str]]:
    """Who took part in the stages before that changed more than the heads that were `solved` anew.

    From a run's history, or as handed on with a resolved model.
    """
    if (path / _FACTS).is_file():
        return dict(read_sealed(path / _FACTS)["shaped"])
    rows = RunFolder(path).history()
    return {
        stage.name: sorted({site for row in rows if row["stage_index"] == at for site in row["sites_aggregated"]})
        for at, stage in enumerate(before)
        if isinstance(stage.aggregate, Standardise | ComBat) or not solved.issuperset(sent(stage, tags))
    }
