"""What to start from, before anything is trained: candidates ranked by sums over frozen features; sites compared."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import assert_never

import numpy as np
from rich.table import Table

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.tables.targets import known
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel, device_named
from fedgraft.common.base.console.terminal import OUT, figure, say
from fedgraft.common.base.errors import FedgraftError, InputError
from fedgraft.common.base.seeds import derive
from fedgraft.common.checks.check_plugins import read_pinned
from fedgraft.common.checks.explain import check_study
from fedgraft.common.checks.far_source import shrunk
from fedgraft.common.closed_form.likeness import Apart, pairs
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import list_weights, load_manifest
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task
from fedgraft.simulations.engines.run import Hospitals, prepare, simulated_cohort
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import load_scenario
from fedgraft.simulations.planning.grouping import Grouping, SiteCases, cases_of, grouping
from fedgraft.simulations.planning.method_advice import MethodAdvice, method_advice
from fedgraft.simulations.planning.transferability import h_score, log_me


@dataclass(frozen=True)
class Candidate:
    """Something to start from, and how much of the task lies ready in its features, by task."""

    weights: str | None
    backbone: str
    log_me: float
    h_score: float | None
    """None of a value, which has no classes whose means could lie apart."""
    from_elsewhere: bool = False
    """Whether no study has made it, as with ImageNet's weights."""


@dataclass(frozen=True)
class Look:
    """What was seen of the sites: candidates from best to worst, and by the best one's features the rest."""

    candidates: list[Candidate]
    pairs: list[Apart]
    """How far all pairs of sites lie apart."""
    cases: dict[str, int]
    """Labelled training cases by site."""
    grouping: Grouping
    """Who should train together."""
    method: MethodAdvice
    """What to take first."""
    warnings: tuple[str, ...]
    """What the best candidate's weights do not get from the study."""
    task: str
    """What all of it is about."""


def suggest(
    path: Path, overrides: tuple[str, ...], scenario: str | None, named: Sequence[str], *, as_json: bool
) -> None:
    """Rank what a study could start from, on the sites of a scenario, and say what their differences suggest."""
    study, shipped = read_pinned(path, overrides)
    if (name := scenario or shipped) is None:
        raise InputError(f"{path} names no scenario.", fix="Say which hospitals to look at: --scenario FILE.")
    base = path.parent if scenario is None else Path()
    found = hospitals_of(load_scenario(base / name if (base / name).is_file() else name))
    seen = look(study, found, named)
    if as_json:
        facts = {"study": study.name, "candidates": [asdict(one) for one in seen.candidates], "cases": seen.cases}
        facts |= {
            "task": seen.task,
            "method": seen.method.method,
            "sites": [asdict(one) | {"apart": one.differs} for one in seen.pairs],
        }
        sys.stdout.write(json.dumps(facts | {"grouping": asdict(seen.grouping)}) + "\n")
        return
    _show(study, seen)


def look(study: Study, found: Hospitals, named: Sequence[str]) -> Look:
    """Rank the candidates, and compare the sites by the best one's features.

    By the first task that sums over features can solve. InputError if nothing fits the study, if it asks for masks
    alone, or no site has labels.
    """
    task = next((one for one in study.tasks if not isinstance(one, Segmentation)), None)
    if task is None:
        raise InputError(
            f"Weights are ranked by sums over features, which solve no masks, and {study.name} asks for nothing else.",
            fix="Try them instead: fedgraft compare STUDY --arm study --arm scratch.",
        )
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as folder:
        prepare(study, Hospitals(found.cohorts), Path(folder) / "run")
        cohorts = {site: simulated_cohort(study, Path(folder) / "run", site) for site in found.cohorts}
    device, scored = device_named("auto"), []
    for candidate in _candidates(study, named):
        local_model = LocalModel(candidate, device)
        local_model.load(initialise(candidate).state())
        cases = _cases(candidate, task, cohorts, local_model)
        if not cases:
            raise InputError(f"No site has a label for task {task.name!r}.", fix="Check the sites' label columns.")
        model = candidate.model
        manifest = None if model.weights is None else load_manifest(model.weights)
        brought = manifest is not None and manifest.is_brought
        ranked = Candidate(model.weights, model.backbone, *ranks(task, [*cases.values()]), brought)
        scored.append((ranked, cases, local_model.tags, shrunk(candidate, manifest)))
    scored.sort(key=lambda one: -one[0].log_me)
    best, cases, tags, small = scored[0]
    apart = pairs({site: own.likeness(task) for site, own in cases.items()})
    method = method_advice(
        task,
        tags,
        from_elsewhere=best.from_elsewhere,
        apart=any(pair.differs for pair in apart),
        several=bool(apart),
    )
    return Look(
        candidates=[one for one, *_ in scored],
        pairs=apart,
        cases={site: len(own.targets) for site, own in cases.items()},
        grouping=grouping(cases, task, study.seed),
        task=task.name,
        method=method,
        warnings=(small,) if small else (),
    )


def ranks(task: AnyTask, cases: Collection[SiteCases]) -> tuple[float, float | None]:
    """LogME and H-score of the pooled cases' features, the means over the problems of the task's head."""
    evidence, apart = [], []
    for at, sums in enumerate(zip(*(own.sums(task) for own in cases), strict=True)):
        total = reduce(add, sums)
        assert total.cross is not None
        evidence.append(log_me(total.gram, total.cross, np.sum([own.squares(task)[at] for own in cases], axis=0)))
        counts = total.gram[:, -1:]
        match task:
            case Task():
                apart.append(h_score(total.gram, total.cross))
            case Multilabel():  # no and yes are two classes
                apart.append(h_score(total.gram, np.hstack([counts - total.cross, counts + total.cross]) / 2))
            case Regression() | Segmentation():
                pass
            case _:
                assert_never(task)
    return float(np.mean(evidence)), float(np.mean(apart)) if apart else None


def _cases(study: Study, task: AnyTask, cohorts: Mapping[str, Cohort], local_model: LocalModel) -> dict[str, SiteCases]:
    """Each site's labelled training cases, if it has any, through the backbone that the study begins with."""
    found = {
        site: cases_of(
            local_model,
            Loader(cohort, study.input, local_model.device),
            task,
            cohort.patients,
            derive(study.seed, "folds", site),
        )
        for site, cohort in cohorts.items()
        if known(cohort.targets[task.name][cohort.splits["train"]]).any()
    }
    return {site: own for site, own in found.items() if len(own.targets)}


def _candidates(study: Study, named: Sequence[str]) -> list[Study]:
    """The study with each of the weights that fit it, and with random entries."""
    refs = list(named) or [manifest.id for manifest in list_weights()]
    found = []
    for ref in refs:
        manifest = next((one for one in list_weights() if one.id == ref), None)
        backbone = manifest.backbone if manifest else study.model.backbone
        model = study.model.model_copy(
            update={"backbone": backbone, "weights": ref, "heads": "fresh", "base_models": ()}
        )
        candidate = study.model_copy(update={"model": model})
        try:
            check_study(candidate, ref)
        except FedgraftError as error:
            if named:
                raise InputError(f"{ref} does not fit study {study.name}: {error}") from None
            continue
        found.append(candidate)
    fresh = study.model.model_copy(update={"weights": None, "heads": "fresh"})
    return [*found, study.model_copy(update={"model": fresh})]


def _show(study: Study, seen: Look) -> None:
    table = Table("start from", "backbone", "LogME", "H-score", title=f"{study.name}: task {seen.task}")
    for one in seen.candidates:
        table.add_row(one.weights or "random entries", one.backbone, figure(one.log_me), figure(one.h_score))
    OUT.print(table)
    cases, apart = seen.cases, [pair for pair in seen.pairs if pair.differs]
    say(first_choice(seen.candidates))
    say(f"{sum(cases.values())} labelled training cases at {len(cases)} sites, {min(cases.values())} at the smallest.")
    if apart:
        worst = max(apart, key=lambda pair: pair.distance)
        say(
            f"{len(apart)} of {len(seen.pairs)} pairs of sites differ by more than chance, {worst.one} and "
            f"{worst.other} most ({worst.distance:.2f} deviations; chance {worst.by_chance:.2f})."
        )
    elif seen.pairs:
        say("No two sites differ by more than chance.")
    for sentence in (seen.method.why, *seen.warnings):
        if sentence:
            say(sentence)
    _show_grouping(seen.grouping, seen.method.until)
    arms = " ".join(f"--arm {arm}" for arm in seen.method.arms)
    say(f"These are ranks, not results. See them tried: fedgraft compare STUDY {arms}")


def first_choice(candidates: Sequence[Candidate]) -> str:
    """What to start from, or that the two ranks do not agree."""
    name = candidates[0].weights or "random entries"
    if len(candidates) == 1:
        return f"Start from {name}: nothing else at hand fits the study."
    if candidates[0].h_score is None:
        return f"Start from {name}: its frozen features tell most of the values, by LogME."
    first, other = candidates[0], max(candidates, key=lambda one: one.h_score or 0.0)
    if first is other:
        return f"Start from {name}: its frozen features tell most of the labels, by LogME and by H-score."
    return (
        f"What to start from cannot be told: LogME puts {name} first, and H-score {other.weights or 'random entries'}. "
        f"Try both: fedgraft compare STUDY --arm study --arm scratch. What follows is by the features of {name}."
    )


def _show_grouping(found: Grouping, meanwhile: str) -> None:
    """Who should train together, and what that rests on; `meanwhile` is what to take as long as it cannot be told."""
    until = f"Until it is tried: {meanwhile}."
    if len(found.clusters) == 1 and not found.tried:
        say(f"Whether sites should have models apart cannot be told ({found.why}). {until}")
        return
    if len(found.tried) < 2:
        return
    table = Table(
        "trains together", found.metric, "minus one model", "95 %", title="Heads on frozen features, 5 folds a site"
    )
    for one in found.tried:
        apart = f"{one.low:+.3f}, {one.high:+.3f}"
        table.add_row(in_words(one.clusters), figure(one.value), f"{one.difference:+.3f}", apart)
    OUT.print(table)
    match found.verdict:
        case "clusters" if all(len(own) == 1 for own in found.clusters):
            say(
                f"Let each site train alone, and do not federate: {found.why}. A hospital like one of them would "
                "change that. Try it: fedgraft compare STUDY --arm local --arm study --arm thumbnail"
            )
        case "clusters":
            say(f"Let these train together, and not all as one: {in_words(found.clusters)} ({found.why}).")
            say(f"In the study: clusters: {_as_written(found.clusters)}")
        case "one":
            say(f"Let all sites train one model: {found.why}.")
        case "unknown":
            say(
                f"Whether to train one model or {in_words(found.clusters)} cannot be told before it is tried: "
                f"{found.why}. {until}"
            )
            if len(found.clusters) > 1:
                arm = f"{{name: clusters, set: {{clusters: {_as_written(found.clusters)}}}}}"
                say(f"To try it, an arm of a comparison: {arm}")
        case _:
            assert_never(found.verdict)


def _as_written(clusters: Sequence[Sequence[str]]) -> str:
    """As a study's file has them."""
    sites = {f"cluster_{at}": list(own) for at, own in enumerate(clusters, start=1)}
    return json.dumps({"by": "name", "sites": sites})


def in_words(clusters: Sequence[Sequence[str]]) -> str:
    """Such as "east + north | south": who has a model together."""
    return " | ".join(" + ".join(sites) for sites in clusters)
