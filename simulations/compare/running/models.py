"""Carry out one arm, and ask the models that it ends with about every site's test cases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import assert_never

import numpy as np
import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.preflight.baseline import fit_alone
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.training.columns.harmonise import own_effects
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.evaluate import Predictions, predictions
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel, device_named
from fedgraft.client.training.recalibrate import recalibrate
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.models.cluster_models import model_for
from fedgraft.common.models.initialise import initialise
from fedgraft.common.plugins.plugin import Plugin
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.study.clusters import NamedClusters
from fedgraft.common.study.methods.fit import Fit
from fedgraft.common.study.plan import Harmonise, Recalibrate
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task
from fedgraft.simulations.compare.measures.answers import MERGED, Answers, Found
from fedgraft.simulations.compare.question import Shortcut, Who
from fedgraft.simulations.compare.running.finished import kept, kept_there
from fedgraft.simulations.compare.running.folds import Fold, deal
from fedgraft.simulations.compare.running.mask_controls import shortcut_predictions
from fedgraft.simulations.engines.faults import Fault
from fedgraft.simulations.engines.run import (
    Hospitals,
    code_of,
    prepare,
    resume,
    simulated_cohort,
)

_ARRAYS = ("outputs", "targets", "patients")


@dataclass(frozen=True)
class Few:
    """A few-shot evaluation: how many cases of each class, how often they are drawn, and by arm how a site fits."""

    shots: tuple[int, ...]
    draws: int
    fits: Mapping[str, Fit]
    task: str | None = None


@dataclass(frozen=True)
class ModelJob:
    """One arm on some hospitals: who trains together, on which fold, and which sites count."""

    study: Study
    who: Who
    cohorts: Mapping[str, CohortSpec]
    fold: Fold | None = None
    measure: tuple[str, ...] = ()
    few: Few | None = None
    public: tuple[str, ...] = ()
    """Sites with public source data: no hospitals, and never tested."""
    sources: Mapping[str, CohortSpec] = field(default_factory=dict)
    """By site the source data that lie there beside its own."""
    faults: Mapping[str, Fault] = field(default_factory=dict)
    policies: Mapping[str, SitePolicy] = field(default_factory=dict)
    """By site what goes wrong there and its rules, where it has any, as in a simulation of the same hospitals."""
    synthetic: bool = True
    """Whether the images are phantoms."""
    finished: str | None = None
    """Of a run of these hospitals that is measured: its folder, in which lies what each of them keeps."""
    shortcut: Shortcut | None = None
    """What answers masks in place of a model, if anything does."""

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Names of the sites that hold patients, without those that hold public source data."""
        return tuple(site for site in self.cohorts if site not in self.public)

    @property
    def code(self) -> tuple[Plugin, ...]:
        """The plug-ins that run at its sites, readers of their data among them."""
        return code_of(self.study, (*self.cohorts.values(), *self.sources.values()))


def carry_out(job: ModelJob, folder: Path) -> tuple[Found, list[str]]:
    """The answers of all models of a job, and what went wrong on the way, in words. Continues what was begun."""
    device = device_named("auto")
    home = prepared(job, job.cohorts, home_of(folder))
    cohorts = {site: simulated_cohort(job.study, home, site) for site in job.hospitals}
    counted = {site: cohorts[site] for site in job.measure or cohorts}
    of: Callable[[str], Arrays]
    if job.who == "together":
        troubles = federate(home)
        local_model = LocalModel(job.study, device)
        of = lambda site: (state := shared_with(home, site)) | kept(job.study, home, site, local_model.tags, state)  # noqa: E731
        return {
            MERGED: {site: _ask(local_model, of(site), job.study, cohort) for site, cohort in counted.items()}
        }, troubles
    if job.who == "new_site":
        return _newcomers(job, folder, counted, device)
    if job.who == "nobody":
        local_model, state = LocalModel(job.study, device), initialise(job.study).state()
        of = lambda site: state | (kept_there(job.finished, site, local_model.tags, state) if job.finished else {})  # noqa: E731
        return {MERGED: {site: _ask(local_model, of(site), job.study, cohort) for site, cohort in counted.items()}}, []
    found: Found = {}
    troubles = []
    for name, trainer, sites in _trainers(job, cohorts):
        asked = {site: cohort for site, cohort in counted.items() if site in sites}
        try:
            own = _alone(job, trainer, asked, device)
        except (TooFewCases, Diverged) as error:
            troubles.append(f"{name}: {'too few cases' if isinstance(error, TooFewCases) else 'diverged'}")
            continue
        found[name] = found.get(name, {}) | own
    return found, troubles


def _alone(
    job: ModelJob, trainer: Cohort, asked: Mapping[str, Cohort], device: torch.device
) -> dict[str, dict[str, Answers]]:
    """By site what is answered by what one cohort has taught. Raises TooFewCases, Diverged."""
    if job.shortcut is not None:
        said = shortcut_predictions(job.shortcut, job.study, trainer, list(asked.values()))
        return {
            site: _of_patients(found, Loader(asked[site], job.study.input, torch.device("cpu")), job.study, asked[site])
            for site, found in zip(asked, said, strict=True)
        }
    local_model, _, _ = fit_alone(job.study, trainer, device, lambda _: None)
    return {site: answers_of(local_model, job.study, cohort) for site, cohort in asked.items()}


def _trainers(job: ModelJob, cohorts: Mapping[str, Cohort]) -> Iterator[tuple[str, Cohort, Collection[str]]]:
    """Who trains a model, its name, and whom it is for: each site, or all as one; of told clusters each as one."""
    if job.who != "pooled":
        for name, cohort in cohorts.items():
            yield name, cohort, cohorts
        return
    told = job.study.clusters
    for sites in told.sites.values() if isinstance(told, NamedClusters) else [tuple(cohorts)]:
        there = [site for site in sites if site in cohorts]
        yield MERGED, pool([cohorts[site] for site in there]), there


def shared_with(home: Path, site: str) -> dict[str, np.ndarray]:
    """The entries of the finished run in `home` that a site has together with others: with all, or its cluster."""
    return load_tensors(model_for(home, site) / "model.safetensors")


def home_of(folder: Path) -> Path:
    """Where the run of a job lies that is carried out in `folder`."""
    return folder / "all"


def pool(cohorts: list[Cohort]) -> Cohort:
    """All sites' cases as one cohort; each patient stays in the split that it has at its site."""
    offsets = np.cumsum([0, *(len(cohort.inputs) for cohort in cohorts)]).tolist()
    first = cohorts[0]
    return replace(
        first,
        name="pooled",
        inputs=torch.cat([cohort.inputs for cohort in cohorts]),
        targets={task: torch.cat([cohort.targets[task] for cohort in cohorts]) for task in first.targets},
        patients=tuple(f"{cohort.name}/{patient}" for cohort in cohorts for patient in cohort.patients),
        splits={
            split: torch.cat([cohort.splits[split] + offset for cohort, offset in zip(cohorts, offsets, strict=False)])
            for split in first.splits
        },
        problems=(),
        facts={},
        origins=(),
        studies=(),
        spacings=tuple(size for cohort in cohorts for size in cohort.spacings or (0.0,) * len(cohort.inputs)),
    )


def _newcomers(
    job: ModelJob, folder: Path, counted: Mapping[str, Cohort], device: torch.device
) -> tuple[Found, list[str]]:
    """Each site in turn stays away from training; it then adapts without labels, if the study's plan does, and asks."""
    found: Found = {}
    troubles = []
    for site, cohort in counted.items():
        others = {name: spec for name, spec in job.cohorts.items() if name != site}
        home = prepared(job, others, folder / f"without-{site}")
        troubles += [f"without {site}: {trouble}" for trouble in federate(home)]
        local_model = LocalModel(job.study, device)
        local_model.load(shared_with(home, site))
        for stage in job.study.plan:
            if isinstance(stage.local, Recalibrate):
                recalibrate(local_model, Loader(cohort, job.study.input, device), stage.local)
            elif isinstance(stage.local, Harmonise):
                own_effects(local_model, Loader(cohort, job.study.input, device))
        found[site] = {site: answers_of(local_model, job.study, cohort)}
    return found, troubles


def prepared(job: ModelJob, cohorts: Mapping[str, CohortSpec], home: Path) -> Path:
    """The folder of a run of some of a job's sites that can begin, or that had begun."""
    if not (home / "study.yaml").is_file():
        sources = {site: spec for site, spec in job.sources.items() if site in cohorts}
        faults = {site: fault for site, fault in job.faults.items() if site in cohorts}
        policies = {site: policy for site, policy in job.policies.items() if site in cohorts}
        there = Hospitals(
            cohorts, faults, public_sources=job.public, sources=sources, policies=policies, synthetic=job.synthetic
        )
        prepare(job.study, there, home)
    if job.fold is not None:
        for site in cohorts:
            deal(job.study, home / "sites" / site, job.fold)
    return home


def federate(home: Path) -> list[str]:
    """Run or continue the federated run in `home`; what its result says was missing."""
    resume(home, report=False)
    result = read_json(home / "result.json")
    return [] if result["status"] == "completed" else [str(result["headline"])]


def _ask(local_model: LocalModel, state: Arrays, study: Study, cohort: Cohort) -> dict[str, Answers]:
    local_model.load(state)
    return answers_of(local_model, study, cohort)


def answers_of(local_model: LocalModel, study: Study, cohort: Cohort) -> dict[str, Answers]:
    """What the model in `local_model` says of the cohort's test cases, by task."""
    loader = Loader(cohort, study.input, local_model.device)
    return _of_patients(predictions(local_model, loader, "test"), loader, study, cohort)


def _of_patients(said: Predictions, loader: Loader, study: Study, cohort: Cohort) -> dict[str, Answers]:
    """Predictions of the test cases, those with a known target, with whose cases they are."""
    names = [cohort.patients[case] for case in loader.labelled("test").tolist()]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    patients = np.array([numbers[name] for name in names], np.int64)
    found = {}
    for task, (outputs, targets) in said.items():
        known = _known(study.tasks_by_name[task], targets)
        found[task] = Answers(outputs[known], targets[known], patients[known])
    return found


def _known(task: AnyTask, targets: np.ndarray) -> np.ndarray:
    """Whether a case's target is known, (N,), of targets as `predictions` gives them; of labels any of them."""
    match task:
        case Task() | Segmentation():
            return np.asarray(targets >= 0)
        case Multilabel():
            return np.asarray(~np.isnan(targets).all(axis=1))
        case Regression():
            return np.asarray(~np.isnan(targets))
    assert_never(task)


def flat(found: Found) -> Iterator[tuple[str, np.ndarray]]:
    """All arrays by `model/site/task/kind`, for one file of tensors."""
    for model, sites in found.items():
        for site, tasks in sites.items():
            for task, answers in tasks.items():
                for kind in _ARRAYS:
                    yield f"{model}/{site}/{task}/{kind}", getattr(answers, kind)


def unflat(arrays: Mapping[str, np.ndarray]) -> Found:
    """The answers by model, site and task, back from `flat`."""
    found: Found = {}
    for key in arrays:
        model, site, task, kind = key.split("/")
        if kind == _ARRAYS[0]:
            parts = (arrays[f"{model}/{site}/{task}/{one}"] for one in _ARRAYS)
            found.setdefault(model, {}).setdefault(site, {})[task] = Answers(*parts)
    return found
