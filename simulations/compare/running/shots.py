"""Few-shot evaluation: a new site fits a model that others made to k cases of each class, drawn anew several times."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.training.few_shot import (
    Given,
    TooFewShots,
    fitted,
    only,
    shots,
)
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.local_model import LocalModel, device_named
from fedgraft.common.base.seeds import derive
from fedgraft.common.closed_form.ood import OodModel
from fedgraft.common.models.cluster_models import model_for
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import load_weights
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task
from fedgraft.simulations.compare.measures.answers import Answers, Found
from fedgraft.simulations.compare.running.models import (
    Few,
    ModelJob,
    answers_of,
    federate,
    prepared,
)
from fedgraft.simulations.engines.run import simulated_cohort


def few_shot(job: ModelJob, folder: Path) -> tuple[Found, list[str]]:
    """Answers by `ARM@K@SITE`, those of all draws in one, and what could not be done, in words after `ARM@K: `.

    Each site in turn is the new one: the others make the model without it, or nobody does.
    """
    assert job.few is not None
    found: Found = {}
    troubles: list[str] = []
    local_model = LocalModel(job.study, device_named("auto"))
    home = prepared(job, job.cohorts, folder / "all")
    for site in job.measure or job.hospitals:
        cohort = simulated_cohort(job.study, home, site)
        given, missing = _given(job, folder, site)
        for arm, size in ((arm, size) for arm in job.few.fits for size in job.few.shots):
            name = f"{arm}@{size}"
            troubles += [f"{name}: {trouble}" for trouble in missing]
            try:
                found[f"{name}@{site}"] = {site: _drawn(local_model, job, cohort, given, (arm, size))}
            except TooFewShots as short:
                troubles.append(f"{name}: {site} has only {short.words()} to train on; not measured there")
            except (TooFewCases, Diverged) as error:
                why = "too few cases" if isinstance(error, TooFewCases) else "diverged"
                troubles.append(f"{name}: {site}: {why}; not measured there")
    return found, troubles


def _given(job: ModelJob, folder: Path, site: str) -> tuple[Given, list[str]]:
    """The model that waits for the new site, and what was missing when it was made."""
    if job.who == "nobody":
        return Given(initialise(job.study).state(), None), []
    others = {name: spec for name, spec in job.cohorts.items() if name != site}
    home = prepared(job, others, folder / f"without-{site}")
    missing = [f"without {site}: {trouble}" for trouble in federate(home)]
    shared = model_for(home, site)
    manifest, state = load_weights(str(shared))
    known = OodModel.read(shared, manifest.sha256)
    return Given(state, known.sums if known else None), missing


def _drawn(
    local_model: LocalModel, job: ModelJob, cohort: Cohort, given: Given, how: tuple[str, int]
) -> dict[str, Answers]:
    """What the model says of the site's test cases after each draw, draw after draw, by task. Raises TooFewShots."""
    assert job.few is not None
    arm, size = how
    several = []
    for number in range(job.few.draws):
        seed = derive(job.study.seed, "draw", cohort.name, number)
        own = only(cohort, shots(cohort, _task(job.few, job.study), size, seed))
        fitted(local_model, own, job.study, given, job.few.fits[arm], seed)
        several.append(answers_of(local_model, job.study, cohort))
    return {task: _joined([one[task] for one in several]) for task in several[0]}


def _joined(draws: list[Answers]) -> Answers:
    """Several models' answers about the same cases as one: a patient who is drawn counts in all of them."""
    parts = ([getattr(one, kind) for one in draws] for kind in ("outputs", "targets", "patients"))
    return Answers(*(np.concatenate(part) for part in parts))


def _task(few: Few, study: Study) -> Task:
    task = study.tasks_by_name[few.task or study.tasks[0].name]
    assert isinstance(task, Task)  # refused before anything runs
    return task


def part_of(found: Found, troubles: list[str], arm: str, size: int) -> tuple[Found, tuple[str, ...]]:
    """What `few_shot` found for one arm at one number of shots, by site."""
    prefix = f"{arm}@{size}"
    own = {model.removeprefix(f"{prefix}@"): sites for model, sites in found.items() if model.startswith(f"{prefix}@")}
    return own, tuple(text.removeprefix(f"{prefix}: ") for text in troubles if text.startswith(f"{prefix}: "))
