"""`fedgraft site adapt`: a hospital fits a finished model to its own few cases, offline, and keeps what changes."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.cohort_request import split_rule
from fedgraft.client.enrolment.config import SiteConfig, read_site
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.client.governance.plugins import allowed_to_look
from fedgraft.client.inference.adapted_model import write_adapted
from fedgraft.client.inference.model import LoadedModel
from fedgraft.client.training.columns.harmonise import own_effects
from fedgraft.client.training.few_shot import (
    Given,
    TooFewShots,
    fitted,
    only,
    shots,
    solves,
)
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.evaluate import evaluate
from fedgraft.client.training.model.loader import Loader
from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import is_there
from fedgraft.common.config.suggest import instead
from fedgraft.common.metrics.plugged import metric_named
from fedgraft.common.metrics.sums.task_metrics import usual
from fedgraft.common.metrics.table import title_with_unit
from fedgraft.common.models.model import state_arrays
from fedgraft.common.models.weights import find
from fedgraft.common.study.inputs import SplitSpec
from fedgraft.common.study.methods.fit import Fit
from fedgraft.common.study.study import read_study


@dataclass(frozen=True)
class AdaptRequest:
    """What was asked of `fedgraft site adapt`. `data` stands for a site that has no configuration yet."""

    model: str
    home: Path
    fit: Fit
    shots: int | None = None
    task: str | None = None
    seed: int = 0
    data: CohortSpec | None = None


def adapt(asked: AdaptRequest, *, as_json: bool) -> None:
    """Fit the model to training cases of the site, measure it on its test cases before and after, and keep it."""
    config = _config(asked)
    if config.threads:
        torch.set_num_threads(config.threads)
    demand_place(config.state)
    with allowed_to_look(config.policy) if asked.data is None else nullcontext():
        _adapt(config, asked, as_json=as_json)


def _adapt(config: SiteConfig, asked: AdaptRequest, *, as_json: bool) -> None:
    reader = LoadedModel(asked.model, everything=True)
    stays = _unsolved(reader, asked.fit)
    cohort = _cohort(config, reader, asked)
    chosen = _chosen(cohort, reader, asked)
    state = {key: array.copy() for key, array in state_arrays(reader.local_model.model).items()}
    before = _measured(reader, cohort)
    # What the site measures otherwise is told by all its training cases: labels say nothing of it.
    effects = own_effects(reader.local_model, Loader(cohort, reader.input, reader.local_model.device))
    given = Given(state | effects, reader.ood_model.sums if reader.ood_model else None)
    try:
        entries = effects | fitted(reader.local_model, only(cohort, chosen), reader.study, given, asked.fit, asked.seed)
    except (TooFewCases, Diverged) as error:
        why = "there are too few training cases" if isinstance(error, TooFewCases) else "the loss became infinite"
        raise RunError(f"The model cannot be fitted: {why}.", fix="Try --fit ridge.") from None
    after = _measured(reader, cohort)
    blended = asked.fit.aggregate is not None and asked.fit.common > 0
    facts = {
        "fit": asked.fit.model_dump(mode="json"),
        "shots": asked.shots,
        "cases": len(chosen),
        "common_sums": blended and given.sums is not None,
        "seed": asked.seed,
        "before": before,
        "after": after,
    }
    write_adapted(config.state, reader.manifest.sha256, entries, facts)
    if as_json:
        sys.stdout.write(json.dumps(facts | {"folder": str(config.state)}) + "\n")
        return
    _show(facts, reader, config.state)
    if stays:
        say(f"{', '.join(stays)}: as they came, since {asked.fit.how} solves no heads of their kind; --fit tune does.")
    if blended and given.sums is None:
        say(
            "The model brings no sums of its sites (method.ood_detection of the study): heads are from the "
            "site's cases alone."
        )


def _config(asked: AdaptRequest) -> SiteConfig:
    if asked.data is None:
        return read_site(asked.home)
    if (asked.home / "site.yaml").exists():
        raise InputError(f"{asked.home}: has a site.yaml, which names its data.", fix="Leave --data out.")
    place = asked.home.resolve()
    return SiteConfig(name="here", cohort=asked.data.below(Path.cwd()), state=place, cache=place / "cache")


def _cohort(config: SiteConfig, reader: LoadedModel, asked: AdaptRequest) -> Cohort:
    """The site's cases, split as the model's study splits them, so that none it learnt from is tested on."""
    source = find(asked.model) / "study.yaml"
    study = read_study(source)[0] if is_there(source) else None
    split, seed = (study.split, study.seed) if study else (SplitSpec(), 0)
    # A site of the study splits as it did or would there; elsewhere nothing private follows.
    rule = split_rule(config.policy, study) if study is not None and asked.data is None else "stratified"
    place = place_of(config, study.digest if study else reader.manifest.sha256)
    wanted = CohortRequest(reader.study.tasks, reader.input, split, seed, rule)
    return load_cohort(config.name, config.cohort, wanted, place)


def _chosen(cohort: Cohort, reader: LoadedModel, asked: AdaptRequest) -> torch.Tensor:
    """The training cases that are used: all labelled ones, or so many of each class. InputError if there are not."""
    tasks = reader.study.tasks_by_name
    if asked.task is not None and asked.task not in tasks:
        raise InputError(f"The model has no task {asked.task!r}{instead(asked.task, tasks)}.")
    if asked.shots is None:
        found = Loader(cohort, reader.input, reader.local_model.device).labelled("train")
        if not len(found):
            raise InputError("The site has no labelled training case.", fix="Name `labels` of the site's data.")
        return found
    of_classes = {task.name: task for task in reader.tasks}
    counted = of_classes.get(asked.task or next(iter(of_classes), ""))
    if counted is None:
        raise InputError(
            f"--shots {asked.shots}: are so many cases of each class, which {asked.task or 'no task of the model'} "
            f"{'does not ask for' if asked.task else 'asks for'}.",
            fix="Leave --shots out to use all cases there are, or name a task of classes with --task.",
        )
    try:
        return shots(cohort, counted, asked.shots, asked.seed)
    except TooFewShots as short:
        raise InputError(
            f"--shots {asked.shots}: the site's training patients have only {short.words()}.",
            fix=f"Ask for {min(short.found.values())} or fewer, or leave --shots out to use all there are."
            if min(short.found.values())
            else "Leave --shots out to use all there are.",
        ) from None


def _unsolved(reader: LoadedModel, fit: Fit) -> list[str]:
    """Tasks whose heads a fit in closed form leaves as they are. InputError if those are all that there are."""
    if fit.aggregate is None:
        return []
    left = [task.name for task in reader.study.tasks if not solves(fit.aggregate, task)]
    if len(left) == len(reader.study.tasks):
        raise InputError(
            f"--fit {fit.how}: solves no head of this model ({', '.join(left)}).",
            fix="Use --fit tune, or ridge for labels and values.",
        )
    return left


def _measured(reader: LoadedModel, cohort: Cohort) -> dict[str, dict[str, Any]]:
    """Figures by task on the site's test cases; nothing if it has none."""
    loader = Loader(cohort, reader.input, reader.local_model.device)
    if not len(loader.labelled("test")):
        return {}
    found = {}
    for task, sums in evaluate(reader.local_model, loader, "test").items():
        values = sums.values()
        found[task] = {key: values[key] for key in ("n", *usual(sums))}
    return found


def _show(facts: dict[str, Any], reader: LoadedModel, folder: Path) -> None:
    each = f", {facts['shots']} of each class" if facts["shots"] else ""
    say(f"Fitted by {facts['fit']['how']} to {facts['cases']} training cases{each}.")
    asked = reader.study.tasks_by_name
    for task, after in facts["after"].items():
        before = facts["before"][task]
        rows = [
            f"{title_with_unit(metric_named(key), asked[task])} {before[key]:.3f} -> {value:.3f}"
            for key, value in after.items()
            if key != "n" and value is not None and before[key] is not None
        ]
        say(f"{task}, {int(after['n'])} test cases of this site: {', '.join(rows)}")
    if not facts["after"]:
        say("The site has no labelled test case, so that nothing was measured.")
    say(f"Nothing left the site. To use it: fedgraft predict {reader.ref} IMAGES --out DIR --site {folder}")
